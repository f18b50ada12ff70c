// SPDX-License-Identifier: Apache-2.0

package traffic

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"time"
)

// Packet is one packet that a Meter saw; a TSO packet is one, with all its segments.
type Packet struct {
	At       time.Duration // since the recording's start, by the kernel's clock
	Wire     int           // bytes from the link header on, the headers counted for each segment
	Segments int
	Src, Dst netip.Addr // of IP packets
	Protocol uint8      // of IP packets: 1 ICMP, 6 TCP, 17 UDP, 58 ICMPv6
	SrcPort  uint16     // of TCP and UDP, except in later fragments
	DstPort  uint16
	CE       bool // ECN: congestion experienced

	headers int // bytes in front of the payload
}

// Capture is what a Meter recorded, in the order of arrival.
type Capture struct {
	Started time.Time
	Elapsed time.Duration
	Packets []Packet
}

// From keeps the packets of one sender.
func (c Capture) From(src netip.Addr) Capture {
	return c.Where(func(p Packet) bool { return p.Src == src })
}

// Where keeps the packets for which keep is true.
func (c Capture) Where(keep func(Packet) bool) Capture {
	var kept []Packet
	for _, p := range c.Packets {
		if keep(p) {
			kept = append(kept, p)
		}
	}
	c.Packets = kept
	return c
}

// First is when the first packet came; zero if there is none.
func (c Capture) First() time.Duration {
	if len(c.Packets) == 0 {
		return 0
	}
	return c.Packets[0].At
}

// Bytes is the sum on the wire in the half-open interval.
func (c Capture) Bytes(from, to time.Duration) int64 {
	var sum int64
	for _, p := range c.Packets {
		if p.At >= from && p.At < to {
			sum += int64(p.Wire)
		}
	}
	return sum
}

// Rate is the mean in wire bits/s in the half-open interval.
func (c Capture) Rate(from, to time.Duration) float64 {
	return float64(c.Bytes(from, to)) * 8 / (to - from).Seconds()
}

// Windows is the mean rate, in wire bits/s, of each whole window between from and to, one after the other.
func (c Capture) Windows(from, to, window time.Duration) []float64 {
	var rates []float64
	for ; from+window <= to; from += window {
		rates = append(rates, c.Rate(from, from+window))
	}
	return rates
}

// Extremes are the least and the highest mean rate, in wire bits/s, of all windows between from and to, each a tenth
// of a window after the one before. A window is at least so long and, at the mean rate, holds at least so many packets.
func (c Capture) Extremes(from, to, window time.Duration, packets int) (least, most float64) {
	inside := c.Where(func(p Packet) bool { return p.At >= from && p.At < to })
	if n := len(inside.Packets); n > 0 {
		window = max(window, (to-from)*time.Duration(packets)/time.Duration(n))
	}
	var rates []float64
	for ; from+window <= to; from += window / 10 {
		rates = append(rates, inside.Rate(from, from+window))
	}
	if len(rates) == 0 {
		return 0, 0
	}
	return slices.Min(rates), slices.Max(rates)
}

// Burst is the smallest b, in bytes, for which no interval of any length t holds more than rate*t + b: the depth of
// the token bucket that would have let everything pass. It holds from the very first packet on.
func (c Capture) Burst(rate float64) int64 {
	var level, worst float64
	var last time.Duration
	for _, p := range c.Packets {
		level = max(0, level-rate/8*(p.At-last).Seconds()) + float64(p.Wire)
		worst = max(worst, level)
		last = p.At
	}
	return int64(worst + 0.5)
}

// EtherTypes, and lengths of headers in bytes.
const (
	etherIPv4, etherIPv6, etherVLAN = 0x0800, 0x86dd, 0x8100
	etherHeader, vlanHeader         = 14, 4
	ipv6Header, udpHeader           = 40, 8
	protoTCP, protoUDP              = 6, 17
	fragmentHeader                  = 44 // IPv6 next header
)

// dissect reads the headers of an Ethernet frame, as far as they are there.
func dissect(frame []byte) Packet {
	p := Packet{headers: min(etherHeader, len(frame))}
	if len(frame) < etherHeader {
		return p
	}
	kind := binary.BigEndian.Uint16(frame[12:])
	if kind == etherVLAN && len(frame) >= etherHeader+vlanHeader {
		p.headers += vlanHeader
		kind = binary.BigEndian.Uint16(frame[16:])
	}
	first := true // not a later fragment: the transport header is there
	ip := frame[p.headers:]
	switch {
	case kind == etherIPv4 && len(ip) >= 20:
		p.Src, p.Dst = netip.AddrFrom4([4]byte(ip[12:16])), netip.AddrFrom4([4]byte(ip[16:20]))
		p.Protocol, p.CE = ip[9], ip[1]&3 == 3
		p.headers += int(ip[0]&15) * 4
		first = binary.BigEndian.Uint16(ip[6:])&0x1fff == 0
	case kind == etherIPv6 && len(ip) >= ipv6Header:
		p.Src, p.Dst = netip.AddrFrom16([16]byte(ip[8:24])), netip.AddrFrom16([16]byte(ip[24:40]))
		p.Protocol, p.CE = ip[6], ip[1]>>4&3 == 3
		p.headers += ipv6Header
		if p.Protocol == fragmentHeader && len(ip) >= ipv6Header+8 {
			p.Protocol = ip[ipv6Header]
			p.headers += 8
			first = binary.BigEndian.Uint16(ip[ipv6Header+2:])&0xfff8 == 0
		}
	default:
		return p
	}
	if first && p.headers < len(frame) {
		p.transport(frame[p.headers:])
	}
	return p
}

// transport reads ports and the length of the transport header.
func (p *Packet) transport(b []byte) {
	if (p.Protocol != protoTCP && p.Protocol != protoUDP) || len(b) < udpHeader {
		return
	}
	p.SrcPort, p.DstPort = binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:])
	switch {
	case p.Protocol == protoUDP:
		p.headers += udpHeader
	case len(b) > 12:
		p.headers += int(b[12]>>4) * 4
	}
}
