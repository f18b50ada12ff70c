// SPDX-License-Identifier: Apache-2.0

package traffic

import (
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestJain(t *testing.T) {
	for name, test := range map[string]struct {
		shares []int64
		want   float64
	}{
		"none":          {nil, 1},
		"nobody":        {[]int64{0, 0}, 1},
		"equal":         {[]int64{7, 7, 7}, 1},
		"one of four":   {[]int64{0, 5, 0, 0}, 0.25},
		"half and half": {[]int64{4, 4, 0, 0}, 0.5},
	} {
		t.Run(name, func(t *testing.T) {
			if got := Jain(test.shares); got != test.want {
				t.Errorf("got %v, want %v", got, test.want)
			}
		})
	}
}

func TestPercentile(t *testing.T) {
	values := []int{5, 1, 4, 2, 3}
	for p, want := range map[float64]int{0: 1, 20: 1, 50: 3, 80: 4, 81: 5, 99: 5, 100: 5} {
		if got := Percentile(values, p); got != want {
			t.Errorf("percentile %v is %d, want %d", p, got, want)
		}
	}
	if diff := cmp.Diff([]int{5, 1, 4, 2, 3}, values); diff != "" {
		t.Errorf("the values were changed (-want +got):\n%s", diff)
	}
	if got := Percentile([]time.Duration(nil), 50); got != 0 {
		t.Errorf("of no values: %v, want 0", got)
	}
}

func TestSeriesBetween(t *testing.T) {
	s := series{slot: 100 * time.Millisecond, bytes: []int64{1, 10, 100, 1000}}
	for name, test := range map[string]struct {
		from, to time.Duration
		want     float64
	}{
		"all":              {0, time.Second, 1111 * 8 / 0.4},
		"two slots":        {100 * time.Millisecond, 300 * time.Millisecond, 110 * 8 / 0.2},
		"whole slots only": {50 * time.Millisecond, 250 * time.Millisecond, 10 * 8 / 0.1},
		"none":             {time.Second, 2 * time.Second, 0},
	} {
		t.Run(name, func(t *testing.T) {
			if got := s.between(test.from, test.to); got != test.want {
				t.Errorf("got %v, want %v", got, test.want)
			}
		})
	}
}

func TestBurst(t *testing.T) {
	ms := time.Millisecond
	for name, test := range map[string]struct {
		packets []Packet
		want    int64
	}{
		"none":                     {nil, 0},
		"one packet":               {[]Packet{{At: 5 * ms, Wire: 1500}}, 1500},
		"at the rate":              {[]Packet{{At: 0, Wire: 1000}, {At: 10 * ms, Wire: 1000}, {At: 20 * ms, Wire: 1000}}, 1000},
		"a burst after silence":    {[]Packet{{At: 0, Wire: 1}, {At: 90 * ms, Wire: 4000}, {At: 90 * ms, Wire: 4000}}, 8000},
		"twice the rate":           {[]Packet{{At: 0, Wire: 1000}, {At: 5 * ms, Wire: 1000}, {At: 10 * ms, Wire: 1000}}, 2000},
		"credit is not saved up":   {[]Packet{{At: 0, Wire: 3000}, {At: 500 * ms, Wire: 3000}}, 3000},
		"debt is worked off later": {[]Packet{{At: 0, Wire: 3000}, {At: 10 * ms, Wire: 1000}}, 3000},
	} {
		t.Run(name, func(t *testing.T) {
			if got := (Capture{Packets: test.packets}).Burst(800e3); got != test.want { // 100 bytes a millisecond
				t.Errorf("got %d, want %d", got, test.want)
			}
		})
	}
}

func TestExtremes(t *testing.T) {
	// 1000 bytes every 10 ms for 4 s, half of it in the third second.
	var c Capture
	for at := time.Duration(0); at < 4*time.Second; at += 10 * time.Millisecond {
		p := Packet{At: at, Wire: 1000}
		if at/time.Second == 2 {
			p.Wire = 500
		}
		c.Packets = append(c.Packets, p)
	}
	for name, test := range map[string]struct {
		window      time.Duration
		packets     int
		least, most float64
	}{
		"a second":                    {time.Second, 1, 400e3, 800e3},
		"two seconds":                 {2 * time.Second, 1, 600e3, 800e3},
		"more than there is":          {5 * time.Second, 1, 0, 0},
		"long enough for 200 packets": {time.Second, 200, 600e3, 800e3},
	} {
		t.Run(name, func(t *testing.T) {
			if least, most := c.Extremes(0, 4*time.Second, test.window, test.packets); least != test.least || most != test.most {
				t.Errorf("got %v and %v, want %v and %v", least, most, test.least, test.most)
			}
		})
	}
}

func TestSegments(t *testing.T) {
	for name, test := range map[string]struct{ length, headers, segment, want int }{
		"not segmented":      {1514, 66, 0, 1},
		"fits":               {1514, 66, 1448, 1},
		"two":                {1515, 66, 1448, 2},
		"45 full segments":   {66 + 45*1448, 66, 1448, 45},
		"45 and a short one": {67 + 45*1448, 66, 1448, 46},
	} {
		t.Run(name, func(t *testing.T) {
			if got := segments(test.length, test.headers, test.segment); got != test.want {
				t.Errorf("got %d, want %d", got, test.want)
			}
		})
	}
}

// frame puts an Ethernet header in front of the parts.
func frame(kind uint16, parts ...[]byte) []byte {
	b := binary.BigEndian.AppendUint16(make([]byte, 12), kind)
	for _, part := range parts {
		b = append(b, part...)
	}
	return b
}

func ipv4(protocol, tos byte, fragment uint16) []byte {
	b := make([]byte, 20)
	b[0], b[1], b[9] = 0x45, tos, protocol
	binary.BigEndian.PutUint16(b[6:], fragment)
	copy(b[12:], []byte{10, 0, 0, 1, 10, 0, 0, 2})
	return b
}

func TestDissect(t *testing.T) {
	src, dst := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")
	tcp := append([]byte{0, 80, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x80, 0}, make([]byte, 18)...) // 32 bytes of header
	udp := []byte{0, 53, 2, 0, 0, 8, 0, 0}
	ipv6 := make([]byte, 40)
	ipv6[6], ipv6[1] = 17, 0x30
	for name, test := range map[string]struct {
		frame []byte
		want  Packet
	}{
		"empty":       {nil, Packet{}},
		"arp":         {frame(0x0806, make([]byte, 28)), Packet{headers: 14}},
		"cut short":   {frame(0x0800, []byte{0x45}), Packet{headers: 14}},
		"tcp":         {frame(0x0800, ipv4(6, 0, 0), tcp), Packet{Src: src, Dst: dst, Protocol: 6, SrcPort: 80, DstPort: 256, headers: 66}},
		"udp with ce": {frame(0x0800, ipv4(17, 3, 0), udp), Packet{Src: src, Dst: dst, Protocol: 17, SrcPort: 53, DstPort: 512, CE: true, headers: 42}},
		"vlan": {frame(0x8100, []byte{0, 5, 8, 0}, ipv4(17, 0, 0), udp),
			Packet{Src: src, Dst: dst, Protocol: 17, SrcPort: 53, DstPort: 512, headers: 46}},
		"first fragment": {frame(0x0800, ipv4(17, 0, 0x2000), udp), Packet{Src: src, Dst: dst, Protocol: 17, SrcPort: 53, DstPort: 512, headers: 42}},
		"later fragment": {frame(0x0800, ipv4(17, 0, 0x20b9), udp), Packet{Src: src, Dst: dst, Protocol: 17, headers: 34}},
		"ipv6 udp with ce": {frame(0x86dd, ipv6, udp),
			Packet{Src: netip.IPv6Unspecified(), Dst: netip.IPv6Unspecified(), Protocol: 17, SrcPort: 53, DstPort: 512, CE: true, headers: 62}},
	} {
		t.Run(name, func(t *testing.T) {
			got := dissect(test.frame)
			if diff := cmp.Diff(test.want, got, cmp.AllowUnexported(Packet{}), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}
