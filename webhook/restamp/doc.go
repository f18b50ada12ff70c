// SPDX-License-Identifier: Apache-2.0

// Package restamp brings policy changes to pods that are already running, and finds pods that were made while the webhook
// was away. One leader watches namespaces, limit ranges, quotas and pods; where today's policy would decide a pod's limit
// differently it writes egress.kubepace.io/policy into the pod, and nothing else. That change calls the mutating webhook,
// which decides the pod anew and puts the limit into the very same request. So the authors of pods keep the ownership of
// their annotation, and one program decides all limits.
//
// Nothing is remembered that a restart would lose: the pods themselves say what is left to do. A leader that starts
// judges all of them once; what is settled costs no request.
package restamp
