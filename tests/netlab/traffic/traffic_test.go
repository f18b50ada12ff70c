// SPDX-License-Identifier: Apache-2.0

package traffic_test

import (
	"context"
	"math"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"go.uber.org/goleak"

	"github.com/kubepace/kubepace/tests/netlab"
	"github.com/kubepace/kubepace/tests/netlab/traffic"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// limit puts a token bucket on the node's uplink: a limiter that is not ours, to try the instruments on.
func limit(t *testing.T, topology *netlab.Topology, bitsPerSecond uint64, burst uint32) {
	t.Helper()
	link, err := topology.Node.Link(netlab.Uplink)
	if err != nil {
		t.Fatal(err)
	}
	tbf := &netlink.Tbf{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: link.Attrs().Index, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT},
		Rate:       bitsPerSecond / 8,
		Buffer:     uint32(float64(burst) / (float64(bitsPerSecond) / 8) * netlink.TickInUsec() * 1e6),
		Limit:      256 << 10,
	}
	if err := topology.Node.Netlink().QdiscAdd(tbf); err != nil {
		t.Fatalf("limit the uplink: %v", err)
	}
}

func start(t *testing.T, topology *netlab.Topology) *traffic.Meter {
	t.Helper()
	meter, err := traffic.StartMeter(topology.Host, topology.HostDevice)
	if err != nil {
		t.Fatal(err)
	}
	return meter
}

func stop(t *testing.T, meter *traffic.Meter) traffic.Capture {
	t.Helper()
	capture, err := meter.Stop()
	if err != nil {
		t.Fatal(err)
	}
	return capture
}

// received is the device's own count of bytes, where a TSO packet's headers count once.
func received(t *testing.T, topology *netlab.Topology) int64 {
	t.Helper()
	link, err := topology.Host.Link(netlab.Eth0)
	if err != nil {
		t.Fatal(err)
	}
	return int64(link.Attrs().Statistics.RxBytes)
}

func within(t *testing.T, what string, got, want, tolerance float64) {
	t.Helper()
	if math.Abs(got-want) > tolerance*want {
		t.Errorf("%s is %.4g, want %.4g ± %.1f %%", what, got, want, tolerance*100)
	}
}

// between is for what a busy machine decides.
func between(t *testing.T, what string, got, low, high float64) {
	t.Helper()
	if got < low || got > high {
		t.Errorf("%s is %.4g, want %.4g to %.4g", what, got, low, high)
	}
}

func TestMeterAgreesWithTheDevice(t *testing.T) {
	topology := netlab.New(t, netlab.Options{NoOffload: true})
	limit(t, topology, 50e6, 32<<10)
	before := received(t, topology)
	meter := start(t, topology)
	result, err := traffic.TCP(context.Background(), traffic.TCPOptions{
		From: topology.Pods[0], To: topology.Host, Addr: topology.Remote, Flows: 2, Duration: time.Second,
	})
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(100 * time.Millisecond) // what is still queued
	capture := stop(t, meter)
	var wire int64
	for _, packet := range capture.Packets {
		wire += int64(packet.Wire)
		if packet.Segments != 1 {
			t.Fatalf("a packet of %d segments with offloads off", packet.Segments)
		}
	}
	// Not equal: the odd IPv6 multicast report comes while only one of the two counts.
	want := float64(received(t, topology) - before)
	between(t, "the meter's sum", float64(wire), want-1000, want)
	if len(result.Flows) != 2 || result.Flows[0].Bytes == 0 || result.Flows[1].Bytes == 0 {
		t.Errorf("flows did nothing: %+v", result.Flows)
	}
}

func TestMeterCountsSegments(t *testing.T) {
	for name, options := range map[string]netlab.Options{"bridge": {}, "vxlan": {VXLAN: true}} {
		t.Run(name, func(t *testing.T) {
			topology := netlab.New(t, options)
			meter := start(t, topology)
			result, err := traffic.TCP(context.Background(), traffic.TCPOptions{
				From: topology.Pods[0], To: topology.Host, Addr: topology.Remote, Duration: 500 * time.Millisecond,
			})
			if err != nil {
				t.Fatal(err)
			}
			capture := stop(t, meter).From(topology.Pods[0].Addr)
			var segments, largest int
			var wire int64
			for _, packet := range capture.Packets {
				segments += packet.Segments
				largest = max(largest, packet.Segments)
				wire += int64(packet.Wire)
			}
			if largest < 2 {
				t.Error("no packet of several segments: nothing was tried")
			}
			// A segment is full nearly always, and has the headers of Ethernet, IP and TCP with timestamps.
			mss := map[string]int{"bridge": 1448, "vxlan": 1398}[name]
			within(t, "mean wire size", float64(wire)/float64(segments), float64(mss+66), 0.03)
			// TCP went on after its own count was taken.
			between(t, "segments", float64(segments), 0.98*float64(result.Flows[0].Segments), 1.5*float64(result.Flows[0].Segments))
		})
	}
}

func TestMeterSeesTheLimit(t *testing.T) {
	const rate, bucket = 20e6, 64 << 10
	topology := netlab.New(t, netlab.Options{NoOffload: true})
	limit(t, topology, rate, bucket)
	meter := start(t, topology)
	result, err := traffic.UDP(context.Background(), traffic.UDPOptions{
		From: topology.Pods[0], To: topology.Host, Addr: topology.Remote, Rate: 2 * rate, Duration: 3 * time.Second,
	})
	if err != nil {
		t.Fatal(err)
	}
	capture := stop(t, meter).From(topology.Pods[0].Addr)
	// The instruments against each other, exactly; against the bucket only roughly, which a busy machine serves late.
	within(t, "wire bytes", float64(capture.Bytes(0, capture.Elapsed)), float64(result.Received*1242), 0)
	within(t, "payload rate", result.Rate(time.Second, 3*time.Second), capture.Rate(time.Second, 3*time.Second)*1200/1242, 0.05)
	within(t, "loss", result.Loss(), 1-float64(result.Received)/float64(result.Sent), 0)
	between(t, "sent payload", float64(result.SentBytes)*8/3, 1.5*rate, 2.05*rate)
	for _, window := range capture.Windows(time.Second, 3*time.Second, time.Second) {
		between(t, "rate of a second", window, 0.4*rate, 1.03*rate)
	}
	// The clock that stamps packets and the one that releases them are read at different times: some slack.
	if burst := capture.Burst(rate); burst < bucket*3/4 || burst > bucket*3 {
		t.Errorf("burst over the rate is %d bytes, want about %d", burst, bucket)
	}
	if got := len(capture.Windows(0, 3*time.Second, 500*time.Millisecond)); got != 6 {
		t.Errorf("%d windows, want 6", got)
	}
}

func TestTCPSharesAndAlgorithms(t *testing.T) {
	topology := netlab.New(t, netlab.Options{})
	limit(t, topology, 30e6, 128<<10)
	result, err := traffic.TCP(context.Background(), traffic.TCPOptions{
		From: topology.Pods[0], To: topology.Host, Addr: topology.Remote, Flows: 8, Congestion: "reno", Duration: 3 * time.Second,
	})
	if err != nil {
		t.Fatal(err)
	}
	if n := len(result.Samples()); n < 29 || n > 31 {
		t.Errorf("%d samples of 100 ms in 3 s", n)
	}
	between(t, "payload rate", result.Rate(time.Second, 3*time.Second), 0.4*30e6, 30e6)
	if jain := result.Jain(); jain < 0.3 || jain > 1 {
		t.Errorf("fairness is %v", jain)
	}
	if loss := result.Loss(); loss < 0 || loss > 0.5 {
		t.Errorf("loss is %v", loss)
	}
	_, err = traffic.TCP(context.Background(), traffic.TCPOptions{
		From: topology.Pods[0], To: topology.Host, Addr: topology.Remote, Congestion: "no-such", Duration: time.Second,
	})
	if err == nil {
		t.Error("an unknown congestion control was accepted")
	}
}

func TestUDPArrives(t *testing.T) {
	for name, size := range map[string]int{"smallest": 8, "one packet": 1472, "two fragments": 1473, "many fragments": 20000} {
		t.Run(name, func(t *testing.T) {
			topology := netlab.New(t, netlab.Options{Pods: 2})
			meter := start(t, topology)
			result, err := traffic.UDP(context.Background(), traffic.UDPOptions{
				From: topology.Pods[0], To: topology.Host, Addr: topology.Remote, Size: size,
				Rate: float64(size) * 8 * 200, Duration: 500 * time.Millisecond, // 200 datagrams a second
			})
			if err != nil {
				t.Fatal(err)
			}
			if result.Sent < 30 || result.Sent > 101 || result.Received != result.Sent || result.Duplicates != 0 {
				t.Errorf("got %+v", result)
			}
			fragments := max(1, (size+8+1479)/1480)
			udp := stop(t, meter).Where(func(p traffic.Packet) bool { return p.Protocol == 17 })
			if want := int(result.Sent) * fragments; len(udp.Packets) != want {
				t.Errorf("%d packets, want %d", len(udp.Packets), want)
			}
			if want := result.SentBytes + result.Sent*int64(8+fragments*34); udp.Bytes(0, time.Hour) != want {
				t.Errorf("%d wire bytes, want %d", udp.Bytes(0, time.Hour), want)
			}
		})
	}
}

func TestPingCountsLosses(t *testing.T) {
	topology := netlab.New(t, netlab.Options{Pods: 1})
	gone := topology.Pods[0].Addr.Next() // nobody has it
	result, err := traffic.Ping(context.Background(), traffic.PingOptions{
		From: topology.Host, Addr: gone, Interval: 50 * time.Millisecond, Duration: 250 * time.Millisecond, Timeout: 300 * time.Millisecond,
	})
	if err != nil {
		t.Fatal(err)
	}
	if result.Sent != 5 || result.Lost != 5 || result.Loss() != 1 || result.Mean() != 0 {
		t.Errorf("got %v", result)
	}
}

func TestEndsWithTheContext(t *testing.T) {
	topology := netlab.New(t, netlab.Options{})
	pod, host := topology.Pods[0], topology.Host
	for name, run := range map[string]func(context.Context) error{
		"tcp": func(ctx context.Context) error {
			_, err := traffic.TCP(ctx, traffic.TCPOptions{From: pod, To: host, Addr: topology.Remote, Duration: time.Minute})
			return err
		},
		"udp": func(ctx context.Context) error {
			_, err := traffic.UDP(ctx, traffic.UDPOptions{From: pod, To: host, Addr: topology.Remote, Rate: 1e6, Duration: time.Minute})
			return err
		},
		"ping": func(ctx context.Context) error {
			_, err := traffic.Ping(ctx, traffic.PingOptions{From: pod, Addr: topology.Remote, Duration: time.Minute})
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(context.Background(), 1500*time.Millisecond)
			defer cancel()
			began := time.Now()
			if err := run(ctx); err != nil {
				t.Error(err)
			}
			if took := time.Since(began); took > 20*time.Second {
				t.Errorf("took %v after the context's 1.5 s", took)
			}
		})
	}
}
