// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"fmt"
	"math/big"
	"math/rand/v2"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/rlimit"
)

//go:generate go tool bpf2go -cc clang-14 -strip llvm-strip-14 -target bpfel -output-suffix _test -cflags "-O2 -g -Wall -Wextra -Werror -mcpu=v3 -idirafter /usr/include/x86_64-linux-gnu -idirafter /usr/include/aarch64-linux-gnu" PaceStep pace_step.c

// The bounds that pace.h and ARCHITECTURE.md state.
const (
	gsoBytes   = 65536
	frameBytes = 1514
	maxHorizon = 9 * time.Second
	maxBatch   = 20 * time.Millisecond
	maxParked  = 1024 // packets
)

// pacer runs pace.h in the kernel, on a clock that the test holds.
type pacer struct {
	t     *testing.T
	coll  *ebpf.Collection
	limit PaceStepPaceLimit
	now   uint64
}

// packet is what a test offers; verdict what it gets.
type packet struct {
	flow     uint64
	bytes    uint32
	own      uint64 // ns of the sender's own pacing
	fragment uint32 // 0 whole, 1 first, 2 later
	id       uint32
	ecn      bool
}

type verdict struct {
	depart uint64
	drop   bool
	mark   bool
}

func newPacer(t *testing.T, bitsPerSecond uint64, pacing bool) *pacer {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("needs root: it runs pace.h in the kernel")
		}
		t.Skip("needs root: it runs pace.h in the kernel")
	}
	if err := rlimit.RemoveMemlock(); err != nil { // before Linux 5.11
		t.Fatal(err)
	}
	spec, err := LoadPaceStep()
	if err != nil {
		t.Fatal(err)
	}
	coll, err := ebpf.NewCollection(spec)
	if err != nil {
		t.Fatalf("load: %+v", err)
	}
	t.Cleanup(coll.Close)
	p := &pacer{t: t, coll: coll, now: 1e9}
	p.setLimit(bitsPerSecond, pacing)
	return p
}

func (p *pacer) setLimit(bitsPerSecond uint64, pacing bool) {
	p.limit = PaceStepPaceLimit{
		RateBps: bitsPerSecond, HorizonNs: uint64(300 * time.Millisecond),
		MtuNs: frameBytes * 8e9 / bitsPerSecond, GsoNs: gsoBytes * 8e9 / bitsPerSecond,
	}
	if pacing {
		p.limit.HorizonNs, p.limit.Mode = uint64(200*time.Millisecond), uint32(EgressPaceModePACE_PACING)
	}
}

// horizon is the one for n competing flows.
func (p *pacer) horizon(n uint64) uint64 {
	if p.limit.Mode == uint32(EgressPaceModePACE_PACING) {
		return min(max(p.limit.HorizonNs, 8*p.limit.MtuNs*n), uint64(maxHorizon))
	}
	return max(p.limit.HorizonNs, 4*p.limit.MtuNs*n, 2*p.limit.GsoNs)
}

// target is the queue that n competing flows may keep.
func (p *pacer) target(n uint64) uint64 {
	return min(max(p.limit.HorizonNs/3, 3*p.limit.MtuNs*n), p.horizon(n)/2)
}

// debt is the stated bound on what goes ahead of the clock, in ns of the rate.
func (p *pacer) debt(n uint64) uint64 {
	return p.horizon(n)/8 + max(p.limit.HorizonNs/16, min(2*p.limit.MtuNs, 1e9))
}

func (p *pacer) offer(k packet) verdict {
	p.t.Helper()
	p.set(PaceStepVarLimit, p.limit)
	p.set(PaceStepVarFlowKey, key(k.flow))
	ecn := uint32(0)
	if k.ecn {
		ecn = 1
	}
	p.set(PaceStepVarPacket, PaceStepPacePacket{
		NowNs: p.now, OwnDepartNs: k.own, Bytes: k.bytes, Segments: 1, Fragment: k.fragment, FragmentId: k.id << 1,
		EcnCapable: ecn,
	})
	ret, err := p.coll.Programs[PaceStepProgPaceOne].Run(&ebpf.RunOptions{Data: make([]byte, 64)})
	if err != nil || ret != 0 {
		p.t.Fatalf("run: %d, %v", ret, err)
	}
	var out PaceStepPaceVerdict
	if err := p.coll.Variables[PaceStepVarVerdict].Get(&out); err != nil {
		p.t.Fatal(err)
	}
	v := verdict{out.DepartNs, out.Drop != 0, out.Mark != 0}
	if !v.drop && v.depart < p.now {
		p.t.Fatalf("departs %d ns in the past", p.now-v.depart)
	}
	return v
}

func (p *pacer) set(name string, value any) {
	p.t.Helper()
	if err := p.coll.Variables[name].Set(value); err != nil {
		p.t.Fatalf("set %s: %v", name, err)
	}
}

func (p *pacer) pod() (pod PaceStepPacePod) {
	p.t.Helper()
	if err := p.coll.Maps[PaceStepMapPods].Lookup(uint32(0), &pod); err != nil {
		p.t.Fatal(err)
	}
	return pod
}

// key spreads flow numbers as the hash of a 5-tuple would.
func key(flow uint64) uint64 {
	h := (flow + 1) * 0x9e3779b97f4a7c15
	h ^= h >> 29
	return h * 0xbf58476d1ce4e5b9
}

// bytesIn is how many bytes a rate carries in so many ns, exactly.
func bytesIn(bitsPerSecond, ns uint64) uint64 {
	x := new(big.Int).Mul(new(big.Int).SetUint64(bitsPerSecond), new(big.Int).SetUint64(ns))
	return x.Div(x, big.NewInt(8e9)).Uint64()
}

// exit records what leaves, and when.
type exit map[uint64]uint64 // departure → bytes

// check holds every prefix against limit × t + allowance.
func (e exit) check(t *testing.T, bitsPerSecond, start, allowance uint64) {
	t.Helper()
	times := make([]uint64, 0, len(e))
	for at := range e {
		times = append(times, at)
	}
	slices.Sort(times)
	sum := uint64(0)
	for _, at := range times {
		sum += e[at]
		if bound := bytesIn(bitsPerSecond, at-start) + allowance; sum > bound {
			t.Fatalf("%d bytes left within %v; limit x t + allowance is %d", sum, time.Duration(at-start), bound)
		}
	}
}

// steps of a random sequence: fewer in a virtual machine, where each is a slow system call.
func steps() int {
	if testing.Short() {
		return 800
	}
	return 8000
}

// shorter is what of n tries the short version makes.
func shorter(n int) int {
	if testing.Short() {
		return n / 4
	}
	return n
}

var rates = map[string]uint64{"1k": 1e3, "64k": 64e3, "1M": 1e6, "10M": 10e6, "100M": 100e6, "10G": 10e9, "1P": 1e15}

// TestNeverMoreThanTheLimit: random senders, sparse and bulk, GSO and fragments, own pacing and floods of new flows.
func TestNeverMoreThanTheLimit(t *testing.T) {
	for name, rate := range rates {
		for _, pacing := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s pacing=%v", name, pacing), func(t *testing.T) {
				p := newPacer(t, rate, pacing)
				start, out, flows := p.now, exit{}, uint64(0)
				last := map[uint64]uint64{}
				for range steps() {
					k, gap := randomPacket(p, &flows)
					p.now += gap
					v := p.offer(k)
					if v.drop {
						continue
					}
					out[v.depart] += uint64(k.bytes)
					if v.depart < last[k.flow] {
						t.Fatalf("flow %d reordered: departs %d ns before its last packet", k.flow, last[k.flow]-v.depart)
					}
					last[k.flow] = v.depart
				}
				n := uint64(1024)
				if pacing {
					out.check(t, rate, start, gsoBytes+bytesIn(rate, p.debt(n)))
				} else {
					out.check(t, rate, start, bytesIn(rate, p.horizon(n)))
				}
			})
		}
	}
}

func randomPacket(p *pacer, flows *uint64) (packet, uint64) {
	k := packet{flow: rand.Uint64N(40), bytes: frameBytes}
	k.ecn = k.flow%2 == 0
	switch rand.IntN(8) {
	case 0:
		k.bytes = 60 + rand.Uint32N(1400)
	case 1:
		k.bytes = gsoBytes
	case 2: // always another flow
		*flows++
		k.flow, k.bytes = 1000+*flows, 74
	case 3:
		k.own = p.now + rand.Uint64N(2*p.limit.HorizonNs)
	case 4:
		k.fragment, k.id = 1+rand.Uint32N(2), rand.Uint32N(3)
	}
	// Between idle and ten times the rate, in bursts.
	gap := uint64(0)
	if rand.IntN(3) == 0 {
		gap = rand.Uint64N(2 + uint64(k.bytes)*8e9/p.limit.RateBps)
	}
	return k, gap
}

// TestUsesTheLimit: while senders offer more, the clock is never idle and accounts every bit.
func TestUsesTheLimit(t *testing.T) {
	for name, rate := range rates {
		for _, flows := range []uint64{1, 8, 64} {
			t.Run(fmt.Sprintf("%s, %d flows", name, flows), func(t *testing.T) {
				p := newPacer(t, rate, true)
				start, sent := p.now, uint64(0)
				for i := range uint64(steps()) {
					v := p.offer(packet{flow: i % flows, bytes: frameBytes})
					if !v.drop {
						sent += frameBytes
						continue
					}
					if pod := p.pod(); pod.ClockNs < p.now+min(p.target(1)/2, 900*p.limit.MtuNs) {
						t.Fatalf("dropped with only %v of backlog", time.Duration(pod.ClockNs-p.now))
					}
					p.now += p.limit.MtuNs / 3
				}
				// The clock stands where the sum of all bits over the rate says, to the ns.
				if got, want := p.pod().ClockNs-start, sent*8e9/rate; got != want {
					t.Errorf("%d bytes moved the clock by %d ns, want %d", sent, got, want)
				}
			})
		}
	}
}

// TestSparseNotDelayed: a ping of 20 per second beside bulk flows is never delayed and never dropped.
func TestSparseNotDelayed(t *testing.T) {
	for _, rate := range []uint64{1e6, 10e6, 100e6} {
		for _, pacing := range []bool{true, false} {
			for _, flows := range []uint64{1, 8, 64} {
				t.Run(fmt.Sprintf("%dM, %d flows, pacing=%v", rate/1e6, flows, pacing), func(t *testing.T) {
					p := newPacer(t, rate, pacing)
					next, pings := p.now, 0
					for i := uint64(0); pings < shorter(20); i++ {
						p.offer(packet{flow: i % flows, bytes: frameBytes})
						p.now += p.limit.MtuNs / 2
						if p.now < next {
							continue
						}
						next += uint64(50 * time.Millisecond)
						pings++
						if v := p.offer(packet{flow: 5000, bytes: 98}); v.drop || v.depart != p.now {
							t.Fatalf("ping %d: drop %v, delayed by %v", pings, v.drop, time.Duration(v.depart-p.now))
						}
					}
				})
			}
		}
	}
}

// TestSparseAmongStrangers: full packets of ever new flows, as after many timeouts at once, leave room for pings,
// whenever these come.
func TestSparseAmongStrangers(t *testing.T) {
	for _, rate := range []uint64{1e6, 10e6, 100e6} {
		p := newPacer(t, rate, true)
		next, pings := p.now, 0
		for i := uint64(0); pings < shorter(100); i++ {
			p.offer(packet{flow: i % 8, bytes: frameBytes})
			p.offer(packet{flow: 10000 + i, bytes: frameBytes})
			p.now += p.limit.MtuNs/4 + rand.Uint64N(p.limit.MtuNs/2)
			if p.now < next {
				continue
			}
			next += uint64(50 * time.Millisecond)
			pings++
			if v := p.offer(packet{flow: 5000, bytes: 98}); v.drop || v.depart != p.now {
				t.Fatalf("%dM, ping %d: drop %v, delayed by %v", rate/1e6, pings, v.drop, time.Duration(v.depart-p.now))
			}
		}
	}
}

// TestCountsFlowsThatWaitLong: of 64 flows at 10M each has packets waiting for hundreds of ms, and sends only when these
// have left. All of them count, or the fair share would be too large to hold anybody to.
func TestCountsFlowsThatWaitLong(t *testing.T) {
	const flows, each = 64, 4
	p := newPacer(t, 10e6, true)
	next := [flows]uint64{}
	for i := range next {
		next[i] = p.now + rand.Uint64N(uint64(300*time.Millisecond))
	}
	least, end := uint32(flows), p.now+uint64(4*time.Second)
	for settled := p.now + uint64(2*time.Second); p.now < end; p.now += p.limit.MtuNs / 4 {
		for i := range next {
			if p.now < next[i] {
				continue
			}
			next[i] = p.now + uint64(100*time.Millisecond)
			for range each {
				if v := p.offer(packet{flow: uint64(i), bytes: frameBytes}); !v.drop {
					next[i] = v.depart + uint64(time.Millisecond)
				}
			}
			if pod := p.pod(); p.now > settled {
				least = min(least, max(pod.Flows, pod.FlowsNow))
			}
		}
	}
	if least < flows*3/4 {
		t.Errorf("only %d of %d flows counted", least, flows)
	}
}

// TestShortFlowsDoNotAddUp: ever new flows of a packet or two, at twice the limit, are not taken for as many that
// compete, and so do not make the queue longer and longer.
func TestShortFlowsDoNotAddUp(t *testing.T) {
	for _, size := range []uint64{1, 2, 4} {
		p := newPacer(t, 10e6, true)
		most := uint64(0)
		for i := range uint64(steps()) {
			p.offer(packet{flow: i / size, bytes: frameBytes})
			p.now += p.limit.MtuNs / 2
			if clock := p.pod().ClockNs; clock > p.now {
				most = max(most, clock-p.now)
			}
		}
		// As many as fit into the least epoch, and the burst of the first.
		if limit := p.horizon(uint64(100*time.Millisecond)/p.limit.MtuNs) + p.horizon(1); most > limit {
			t.Errorf("flows of %d packets: a backlog of %v, more than %v", size, time.Duration(most), time.Duration(limit))
		}
	}
}

// TestEarlyNotice: a flow over the target loses one packet, and the next one only after it can have noticed; a packet
// that can be marked is marked instead, and lost only over the horizon.
func TestEarlyNotice(t *testing.T) {
	p := newPacer(t, 10e6, true)
	backlog := func() uint64 { return p.pod().ClockNs - p.now }
	for !p.offer(packet{bytes: frameBytes}).drop {
	}
	if got := backlog(); got < p.target(1) || got > p.target(1)+p.limit.MtuNs {
		t.Fatalf("first packet lost at a backlog of %v, want just over %v", time.Duration(got), time.Duration(p.target(1)))
	}
	until, lost := p.now+backlog()+p.target(1), 0
	for range 5 {
		if p.offer(packet{bytes: frameBytes}).drop {
			t.Fatal("lost another packet at once")
		}
	}
	for ; p.now < until; p.now += p.limit.MtuNs {
		if p.offer(packet{bytes: frameBytes}).drop {
			t.Fatalf("lost another packet %v before the first can have been noticed", time.Duration(until-p.now))
		}
	}
	for range 10 {
		p.now += p.limit.MtuNs
		if p.offer(packet{bytes: frameBytes}).drop {
			lost++
		}
	}
	if lost != 1 {
		t.Errorf("lost %d packets after the sender did not slow down, want 1", lost)
	}

	p = newPacer(t, 10e6, true)
	marked := uint64(0)
	for {
		before := backlog()
		v := p.offer(packet{bytes: frameBytes, ecn: true})
		if v.drop {
			break
		}
		if v.mark && marked == 0 {
			marked = before
		}
	}
	if marked < p.target(1)/2 || marked > p.target(1)/2+p.limit.MtuNs {
		t.Errorf("first mark at a backlog of %v, want just over %v", time.Duration(marked), time.Duration(p.target(1)/2))
	}
	if got := backlog(); got <= p.horizon(1) {
		t.Errorf("lost a packet that could be marked at a backlog of %v; the horizon is %v", time.Duration(got), time.Duration(p.horizon(1)))
	}
}

// TestBatches: what waits leaves together with others, in batches of at most two and a half GSO packets, and waits for
// them no longer than stated. No length is the usual one. A pod that does not wait is not batched.
func TestBatches(t *testing.T) {
	for name, rate := range rates {
		p := newPacer(t, rate, true)
		if v := p.offer(packet{bytes: frameBytes}); v.depart != p.now {
			t.Errorf("%s: the first packet waits %v", name, time.Duration(v.depart-p.now))
		}
		offers := steps()
		if name == "10M" || name == "100M" { // what is counted below
			offers = 8000
		}
		longest := min(p.limit.GsoNs*5/2, uint64(maxBatch))
		together, batches, most := map[uint64]uint64{}, 0, uint64(0)
		var lengths []uint64 // of those that the backlog does not limit
		for i := range uint64(offers) {
			clock := max(p.pod().ClockNs, p.now)
			v := p.offer(packet{flow: i % 5, bytes: frameBytes, ecn: true})
			late := v.depart - min(v.depart, clock)
			opens := together[v.depart] == 0
			if !v.drop && late > longest || opens && late > (clock-p.now)/2 {
				t.Fatalf("%s: waits %v for others behind %v of backlog", name, time.Duration(late), time.Duration(clock-p.now))
			}
			if !v.drop && v.depart > p.now {
				if opens {
					batches++
					if (clock-p.now)/2 > longest {
						lengths = append(lengths, late)
					}
				}
				together[v.depart] += frameBytes
				most = max(most, together[v.depart])
			}
			p.now += p.limit.MtuNs / 2
		}
		// At 1P all times are rounded to a hundred bytes or so.
		if limit := uint64(gsoBytes*5/2 + frameBytes); most > limit && rate < 1e12 {
			t.Errorf("%s: %d bytes leave together, more than %d", name, most, limit)
		}
		// At 10M, a batch of 20 ms holds 16 frames.
		if name == "10M" && batches*12 > offers/2 {
			t.Errorf("%s: %d batches for at most %d frames", name, batches, offers/2)
		}
		if name == "100M" {
			slices.Sort(lengths)
			for ninths := range 10 {
				n := len(lengths)
				got := lengths[min(n*ninths/9, n-1)]
				want := p.limit.GsoNs/2 + p.limit.GsoNs*2*uint64(ninths)/9
				if got+p.limit.GsoNs/4 < want || got > want+p.limit.GsoNs/4 {
					t.Errorf("100M: of %d batches %d in 9 are shorter than %v, want %v", n, ninths, time.Duration(got), time.Duration(want))
				}
			}
		}
	}
}

// TestOwnPacing: a sender that paces itself far into the future delays its own packets, within the horizon, and
// leaves every other flow where it would have been.
func TestOwnPacing(t *testing.T) {
	run := func(own uint64) (others []verdict, itself []verdict) {
		p := newPacer(t, 10e6, true)
		for i := range uint64(4000) {
			v := p.offer(packet{flow: i % 4, bytes: 1000, own: own * (i % 4 / 3)})
			if i%4 == 3 {
				itself = append(itself, v)
				if v.depart > p.now+p.horizon(4)+uint64(maxBatch) {
					t.Fatalf("own pacing reaches %v beyond the horizon", time.Duration(v.depart-p.now-p.horizon(4)))
				}
			} else {
				others = append(others, v)
			}
			p.now += p.limit.MtuNs
		}
		return others, itself
	}
	without, _ := run(0)
	with, itself := run(1 << 62)
	for i := range without {
		if with[i] != without[i] {
			t.Fatalf("packet %d of another flow: %+v beside own pacing, %+v without", i, with[i], without[i])
		}
	}
	if itself[0].depart == 1e9 {
		t.Error("own pacing was not kept")
	}
}

// TestParkedPackets: a flood of small packets leaves fq room for others.
func TestParkedPackets(t *testing.T) {
	p := newPacer(t, 1e9, true)
	waiting := map[uint64]int{}
	for range steps() {
		if v := p.offer(packet{bytes: 60}); !v.drop {
			waiting[v.depart]++
		}
		p.now += 100
		parked := 0
		for at, n := range waiting {
			if at <= p.now {
				delete(waiting, at)
			} else {
				parked += n
			}
		}
		// A batch, at most half of what waits, is still there when its packets count as gone.
		if parked > maxParked*3/2+1 {
			t.Fatalf("%d packets wait", parked)
		}
	}
}

// TestFragments: all of a datagram, or none.
func TestFragments(t *testing.T) {
	for _, pacing := range []bool{true, false} {
		p := newPacer(t, 10e6, pacing)
		whole, torn := 0, 0
		for id := range uint32(steps() / 2) {
			admitted := 0
			for part := range 4 {
				k := packet{bytes: 1514, id: id, fragment: 2}
				if part == 0 {
					k.fragment = 1
				}
				if !p.offer(k).drop {
					admitted++
				}
				p.now += p.limit.MtuNs / 4
			}
			switch admitted {
			case 4:
				whole++
			case 0:
			default:
				torn++
			}
		}
		if torn > 0 || whole < steps()/10 {
			t.Errorf("pacing=%v: %d datagrams whole, %d torn", pacing, whole, torn)
		}
	}
}

// TestLiveChange keeps the clock, and forgives only what the new limit would never have made.
func TestLiveChange(t *testing.T) {
	p := newPacer(t, 10e6, true)
	for range 40 {
		p.offer(packet{bytes: frameBytes})
	}
	before := p.pod().ClockNs
	p.setLimit(20e6, true)
	if v := p.offer(packet{bytes: frameBytes}); v.depart < before || v.depart > before+uint64(maxBatch) {
		t.Errorf("after a raise the next packet departs at %d, want %d: the clock was reset", v.depart, before)
	}
	p.setLimit(5e6, true)
	before = p.pod().ClockNs
	if v := p.offer(packet{bytes: frameBytes}); v.depart < before || v.depart > before+uint64(maxBatch) {
		t.Errorf("after a cut the next packet departs at %d, want %d", v.depart, before)
	}

	p = newPacer(t, 1000, true)
	p.offer(packet{bytes: gsoBytes}) // nine minutes at 1k
	p.setLimit(100e6, true)
	p.now += uint64(150 * time.Millisecond)
	if v := p.offer(packet{bytes: frameBytes}); v.drop || v.depart > p.now+p.horizon(1)+uint64(maxBatch) {
		t.Errorf("after a raise from 1k: drop %v, delay %v", v.drop, time.Duration(v.depart-p.now))
	}
}

// TestExtremes: no overflow at the ends of size, rate and time.
func TestExtremes(t *testing.T) {
	for name, rate := range rates {
		p := newPacer(t, rate, true)
		for _, now := range []uint64{0, 1, 1e9, 1 << 40, 1 << 61, 1<<62 + 12345} {
			p.now = max(p.now, now)
			for i := range uint64(300) {
				v := p.offer(packet{flow: i, bytes: []uint32{1, 60, frameBytes, gsoBytes, 1 << 20}[i%5], own: ^uint64(0)})
				if !v.drop && v.depart > p.now+uint64(maxHorizon+maxBatch) {
					t.Fatalf("%s at %d: departs in %v", name, now, time.Duration(v.depart-p.now))
				}
			}
			if pod := p.pod(); pod.ClockNs > p.now+1<<46 {
				t.Fatalf("%s at %d: the clock is %v ahead", name, now, time.Duration(pod.ClockNs-p.now))
			}
		}
	}
}
