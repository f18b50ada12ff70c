// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"time"

	"github.com/kubepace/kubepace/bandwidth"
	"github.com/kubepace/kubepace/bpf"
)

const (
	// HorizonPacing is the least backlog in time beyond which a paced pod loses packets. Bulk flows are told to slow
	// down at a third of it: long enough for cubic to fill the limit over a round trip of 200 ms. The rest is room
	// for what a sender in slow start sends before it notices.
	HorizonPacing = 200 * time.Millisecond
	// HorizonPolicing is the same where nothing can wait: the burst that a policed pod may send at once. TCP over a
	// short path answers a policer with its retransmission timeout, 200 ms at least; what is left of the horizon
	// for bulk (15/16) must outlast it, or the limit stands idle meanwhile (200 ms gave 70 %, 300 ms 97 %).
	HorizonPolicing = 300 * time.Millisecond

	frameBytes   = 1514  // an Ethernet frame of MTU 1500 with its link header
	gsoBytes     = 65536 // PACE_GSO_BYTES
	bitNsPerByte = 8 * uint64(time.Second)
)

// paceLimit is the form in which the program reads a limit.
func paceLimit(rate bandwidth.Rate, mode Mode) bpf.EgressPaceLimit {
	return paceLimitBps(uint64(rate.BitsPerSecond()), mode)
}

func paceLimitBps(bps uint64, mode Mode) bpf.EgressPaceLimit {
	horizon := HorizonPolicing
	if mode == ModePacing {
		horizon = HorizonPacing
	}
	return bpf.EgressPaceLimit{
		RateBps:   bps,
		HorizonNs: uint64(horizon),
		MtuNs:     costNs(frameBytes, bps),
		GsoNs:     costNs(gsoBytes, bps),
		Mode:      bpf.EgressPaceMode(mode),
	}
}

// costNs is how long so many bytes take at a rate, rounded down.
func costNs(bytes, bitsPerSecond uint64) uint64 { return bytes * bitNsPerByte / bitsPerSecond }

// horizonOf mirrors what the program uses for one competing flow.
func horizonOf(l bpf.EgressPaceLimit) time.Duration {
	if Mode(l.Mode) == ModePacing {
		return time.Duration(min(max(l.HorizonNs, 8*l.MtuNs), uint64(9*time.Second)))
	}
	return time.Duration(max(l.HorizonNs, 4*l.MtuNs, 2*l.GsoNs))
}
