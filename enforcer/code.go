// SPDX-License-Identifier: Apache-2.0

package enforcer

import (
	"errors"

	"github.com/kubepace/kubepace/enforcer/datapath"
	"github.com/kubepace/kubepace/enforcer/device"
)

// Code is a verdict's reason in one word, for machines: the reason of the pod's condition, the label of a metric. The
// words do not change; people read Verdict.Reason.
type Code string

// Codes of an enforced limit.
const (
	CodePacing   Code = "Pacing"
	CodePolicing Code = "Policing"
	// CodeLastGoodLimit: the annotation cannot be read, and what it said before is kept.
	CodeLastGoodLimit Code = "LastGoodLimit"
)

// Codes of a limit that is not enforced.
const (
	// CodeInvalidLimit: the annotation cannot be read, and there is nothing to keep.
	CodeInvalidLimit Code = "InvalidLimit"
	// CodeHostNetwork: the pod shares the node's network namespace.
	CodeHostNetwork Code = "HostNetwork"
	// CodeNoHostDevice: nothing that the pod has ends in a device of the node.
	CodeNoHostDevice Code = "NoHostDevice"
	// CodeNotAllHeld: the pod has other interfaces beside those that are held.
	CodeNotAllHeld Code = "NotAllHeld"
	// CodeDeviceNotFound: the pod's device is not there yet, or not any more.
	CodeDeviceNotFound Code = "DeviceNotFound"
	// CodeAmbiguousAddress: several network namespaces have the pod's address.
	CodeAmbiguousAddress Code = "AmbiguousAddress"
	// CodeOtherLimiter: somebody else limits the pod, and the agent was told to leave it to them.
	CodeOtherLimiter Code = "OtherLimiter"
	// CodeNotFirst: another program gets the pod's packets before ours, and cannot be passed.
	CodeNotFirst Code = "NotFirst"
	// CodeKernelLacks: the node's kernel lacks what any limit needs.
	CodeKernelLacks Code = "KernelLacks"
	// CodeFailed: the kernel or the node refused something; it is tried again.
	CodeFailed Code = "Failed"
)

// codeOf finds the word for an error of finding a pod's devices or of setting its limit.
func codeOf(err error) Code {
	var noVeth *device.NoHostVethError
	var notFound *device.NotFoundError
	var ambiguous *device.AmbiguousError
	var lacks *datapath.LacksError
	var notFirst *datapath.NotFirstError
	switch {
	case errors.Is(err, device.ErrHostNetwork):
		return CodeHostNetwork
	case errors.As(err, &noVeth) && len(noVeth.Interfaces) > 0:
		return CodeNoHostDevice
	case errors.As(err, &noVeth), errors.As(err, &notFound):
		return CodeDeviceNotFound
	case errors.As(err, &ambiguous):
		return CodeAmbiguousAddress
	case errors.As(err, &lacks):
		return CodeKernelLacks
	case errors.As(err, &notFirst):
		return CodeNotFirst
	}
	return CodeFailed
}

// codeOfMode is the word for a limit that is enforced.
func codeOfMode(m datapath.Mode) Code {
	if m == datapath.ModePacing {
		return CodePacing
	}
	return CodePolicing
}
