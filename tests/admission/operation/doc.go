// SPDX-License-Identifier: Apache-2.0

// Package operation tests what happens to admission while certificates rotate and replicas come and go: three replicas
// behind a stand-in for the Service, failurePolicy Fail everywhere so that no lost call goes unseen, and clients that
// never stop. See package lab for what it needs.
package operation
