// SPDX-License-Identifier: Apache-2.0

package traffic

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

const (
	sampleEvery    = 100 * time.Millisecond
	connectTimeout = 20 * time.Second
	chunk          = 128 << 10
)

// TCPOptions describe a bulk transfer of several flows that all start together.
type TCPOptions struct {
	From, To   Runner
	Addr       netip.Addr    // of To
	Flows      int           // 1 if 0
	Congestion string        // algorithm, such as "bbr"; "cubic" if "": the kernels' own defaults differ
	Duration   time.Duration // of sending, after all flows are connected
	MaxPacing  int           // payload bits/s at which each sender paces itself (SO_MAX_PACING_RATE); 0 for none
}

// TCPFlow is what one flow did.
type TCPFlow struct {
	Local       netip.AddrPort
	Bytes       int64   // payload that the receiver read during the transfer
	Samples     []int64 // Bytes, in slots of 100 ms
	Sent        int64   // payload that the sender handed to its kernel
	Retransmits uint32  // segments
	Segments    uint32  // data segments sent, retransmissions included
}

// TCPResult is a finished transfer. The clock starts when all flows are connected.
type TCPResult struct {
	Flows   []TCPFlow
	Started time.Time
	Elapsed time.Duration
}

// Rate is the payload of all flows per second, in bits/s, between two times since the start.
func (r TCPResult) Rate(from, to time.Duration) float64 {
	return series{sampleEvery, r.Samples()}.between(from, to)
}

// Samples is the payload of all flows, in bytes for each 100 ms.
func (r TCPResult) Samples() []int64 {
	var sum []int64
	for _, flow := range r.Flows {
		for i, b := range flow.Samples {
			if i == len(sum) {
				sum = append(sum, 0)
			}
			sum[i] += b
		}
	}
	return sum
}

// Jain is the fairness of the flows among each other, by payload.
func (r TCPResult) Jain() float64 {
	shares := make([]int64, len(r.Flows))
	for i, flow := range r.Flows {
		shares[i] = flow.Bytes
	}
	return Jain(shares)
}

// Loss is the share of data segments that had to be sent again, from 0 to 1.
func (r TCPResult) Loss() float64 {
	var again, all float64
	for _, flow := range r.Flows {
		again += float64(flow.Retransmits)
		all += float64(flow.Segments)
	}
	if all == 0 {
		return 0
	}
	return again / all
}

// tcpFlow is a running flow: its two ends and its result, of which sender and receiver write different fields.
type tcpFlow struct {
	sender, receiver *net.TCPConn
	result           TCPFlow
}

// TCP transfers in bulk for the duration, or until the context ends, and returns what arrived. All sockets and
// goroutines are gone when it returns.
func TCP(ctx context.Context, o TCPOptions) (TCPResult, error) {
	if o.Congestion == "" {
		o.Congestion = "cubic"
	}
	flows, err := connectFlows(ctx, o)
	defer func() {
		for _, flow := range flows {
			flow.close()
		}
	}()
	if err != nil {
		return TCPResult{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, o.Duration)
	defer cancel()
	result := TCPResult{Started: time.Now()}
	var running sync.WaitGroup
	for _, flow := range flows {
		running.Go(flow.send)
		running.Go(func() { flow.receive(result.Started) })
	}
	<-ctx.Done()
	result.Elapsed = time.Since(result.Started)
	var errs []error
	for _, flow := range flows {
		errs = append(errs, flow.readInfo())
		flow.close()
	}
	running.Wait()
	for _, flow := range flows {
		flow.result.cut(result.Elapsed)
		result.Flows = append(result.Flows, flow.result)
	}
	return result, errors.Join(errs...)
}

// connectFlows makes all connections before any of them sends.
func connectFlows(ctx context.Context, o TCPOptions) (flows []*tcpFlow, err error) {
	var listener *net.TCPListener
	err = o.To.Do(func() error {
		listener, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(o.Addr, 0)))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("listen for bulk transfer: %w", err)
	}
	defer listener.Close()
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	accepted := make(map[uint16]*net.TCPConn)
	group, ctx := errgroup.WithContext(ctx)
	// The first failure ends the wait for connections that will not come.
	defer context.AfterFunc(ctx, func() { _ = listener.Close() })()
	flows = make([]*tcpFlow, max(o.Flows, 1))
	group.Go(func() error { return accept(listener, len(flows), accepted) })
	for i := range flows {
		flows[i] = &tcpFlow{}
		group.Go(func() (err error) {
			flows[i].sender, err = dial(ctx, o, listener.Addr().String())
			return err
		})
	}
	err = group.Wait()
	for _, flow := range flows {
		if flow.sender == nil {
			continue
		}
		flow.result.Local = addrPort(flow.sender.LocalAddr())
		// Ports stay as they are on the way, unless a NAT finds one taken: with a namespace of its own, never.
		flow.receiver = accepted[flow.result.Local.Port()]
		delete(accepted, flow.result.Local.Port())
		if err == nil && flow.receiver == nil {
			err = fmt.Errorf("no connection arrived from port %d", flow.result.Local.Port())
		}
	}
	for _, left := range accepted {
		_ = left.Close()
	}
	return flows, err
}

// addrPort reads the address of a connected socket.
func addrPort(a net.Addr) netip.AddrPort { return netip.MustParseAddrPort(a.String()) }

// accept takes n connections, by the port that they come from.
func accept(listener *net.TCPListener, n int, accepted map[uint16]*net.TCPConn) error {
	_ = listener.SetDeadline(time.Now().Add(connectTimeout))
	for range n {
		conn, err := listener.AcceptTCP()
		if err != nil {
			return fmt.Errorf("accept bulk transfer: %w", err)
		}
		accepted[addrPort(conn.RemoteAddr()).Port()] = conn
	}
	return nil
}

func dial(ctx context.Context, o TCPOptions, to string) (conn *net.TCPConn, err error) {
	dialer := net.Dialer{Control: func(_, _ string, raw syscall.RawConn) error {
		var set error
		err := raw.Control(func(fd uintptr) {
			set = unix.SetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION, o.Congestion)
			if o.MaxPacing > 0 {
				set = errors.Join(set, unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MAX_PACING_RATE, o.MaxPacing/8))
			}
		})
		return errors.Join(err, set)
	}}
	err = o.From.Do(func() error {
		// A literal address: the dialer stays on this thread, which is the one in the namespace.
		c, err := dialer.DialContext(ctx, "tcp", to)
		if err != nil {
			return fmt.Errorf("connect bulk transfer (%s): %w", o.Congestion, err)
		}
		var ok bool
		if conn, ok = c.(*net.TCPConn); !ok {
			return errors.Join(fmt.Errorf("connect bulk transfer: %T is not a TCP connection", c), c.Close())
		}
		return nil
	})
	return conn, err
}

func (f *tcpFlow) send() {
	buffer := make([]byte, chunk)
	for {
		n, err := f.sender.Write(buffer)
		f.result.Sent += int64(n)
		if err != nil {
			return // closed by TCP
		}
	}
}

func (f *tcpFlow) receive(started time.Time) {
	buffer := make([]byte, 2*chunk)
	for {
		n, err := f.receiver.Read(buffer)
		slot := int(time.Since(started) / sampleEvery)
		for len(f.result.Samples) <= slot {
			f.result.Samples = append(f.result.Samples, 0)
		}
		f.result.Samples[slot] += int64(n)
		if err != nil {
			return // closed by TCP
		}
	}
}

// cut makes the samples as long as the transfer took, so that those of all flows have one length, and adds them up.
func (f *TCPFlow) cut(elapsed time.Duration) {
	samples := make([]int64, (elapsed+sampleEvery/2)/sampleEvery)
	copy(samples, f.Samples)
	f.Samples = samples
	for _, b := range samples {
		f.Bytes += b
	}
}

// readInfo takes the sender's own account of the flow.
func (f *tcpFlow) readInfo() error {
	raw, err := f.sender.SyscallConn()
	if err != nil {
		return fmt.Errorf("read TCP_INFO: %w", err)
	}
	var info *unix.TCPInfo
	var get error
	err = raw.Control(func(fd uintptr) { info, get = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO) })
	if err = errors.Join(err, get); err != nil {
		return fmt.Errorf("read TCP_INFO: %w", err)
	}
	f.result.Retransmits, f.result.Segments = info.Total_retrans, info.Data_segs_out
	return nil
}

// close resets the connection, so that the kernel keeps nothing of it.
func (f *tcpFlow) close() {
	for _, conn := range []*net.TCPConn{f.sender, f.receiver} {
		if conn != nil {
			_ = conn.SetLinger(0)
			_ = conn.Close()
		}
	}
}
