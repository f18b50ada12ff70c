// SPDX-License-Identifier: Apache-2.0

package traffic

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// minUDPSize holds the sequence number that each datagram begins with.
const minUDPSize = 8

// UDPOptions describe a stream of datagrams of one size at a constant rate.
type UDPOptions struct {
	From, To Runner
	Addr     netip.Addr    // of To
	Rate     float64       // payload bits/s; 0 for as fast as the sender can
	Size     int           // payload bytes of a datagram, 8 to 65507 (fragmented where it exceeds the MTU); 1200 if 0
	Duration time.Duration // of sending
	Drain    time.Duration // how long to wait for what is still on its way; 500 ms if 0
	// TxTime asks the sender's own kernel to let each datagram leave so much later (SO_TXTIME); 0 for not.
	TxTime time.Duration
}

// UDPResult is a finished stream. Samples count the payload received in each 100 ms since the start.
type UDPResult struct {
	Sent, Received         int64 // datagrams
	SentBytes, Bytes       int64 // payload
	SendErrors             int64 // refused by the sender's own kernel, such as ENOBUFS; not in Sent
	Reordered, Duplicates  int64
	Samples                []int64
	Started                time.Time
	Late                   time.Duration // by how much the sender was late at most, where it keeps a rate
	SendElapsed, RecvAfter time.Duration // how long sending took; when the last datagram arrived, since the start
}

// Rate is the payload received per second, in bits/s, between two times since the start.
func (r UDPResult) Rate(from, to time.Duration) float64 {
	return series{sampleEvery, r.Samples}.between(from, to)
}

// Loss is the share of the sent datagrams that did not arrive, from 0 to 1.
func (r UDPResult) Loss() float64 {
	if r.Sent == 0 {
		return 0
	}
	return 1 - float64(r.Received-r.Duplicates)/float64(r.Sent)
}

// UDP sends for the duration, or until the context ends, and returns what arrived. All sockets and goroutines are
// gone when it returns.
func UDP(ctx context.Context, o UDPOptions) (UDPResult, error) {
	if o.Size == 0 {
		o.Size = 1200
	}
	if o.Size < minUDPSize {
		return UDPResult{}, fmt.Errorf("datagrams of %d bytes: at least %d", o.Size, minUDPSize)
	}
	if o.Drain == 0 {
		o.Drain = 500 * time.Millisecond
	}
	receiver, sender, err := udpSockets(o)
	if err != nil {
		return UDPResult{}, err
	}
	defer sender.Close()
	defer receiver.Close()
	if o.TxTime != 0 {
		if err := enableTxTime(sender); err != nil {
			return UDPResult{}, err
		}
	}
	result := UDPResult{Started: time.Now()}
	received := make(chan error, 1)
	go func() { received <- result.receive(receiver) }()
	sendErr := result.send(ctx, sender, o)
	result.SendElapsed = time.Since(result.Started)
	_ = receiver.SetReadDeadline(time.Now().Add(o.Drain))
	return result, errors.Join(sendErr, <-received)
}

func udpSockets(o UDPOptions) (receiver, sender *net.UDPConn, err error) {
	err = o.To.Do(func() error {
		receiver, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(o.Addr, 0)))
		return err
	})
	if err != nil {
		return nil, nil, fmt.Errorf("listen for datagrams: %w", err)
	}
	// A busy machine must not make the receiver drop what the network delivered.
	raw, err := receiver.SyscallConn()
	if err == nil {
		err = raw.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 32<<20) })
	}
	if err == nil {
		err = o.From.Do(func() error {
			sender, err = net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(addrPort(receiver.LocalAddr())))
			return err
		})
	}
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("sender of datagrams: %w", err), receiver.Close())
	}
	return receiver, sender, nil
}

// send keeps to the rate on average: it sleeps to the next datagram's time, and catches up after a late wake-up.
func (r *UDPResult) send(ctx context.Context, conn *net.UDPConn, o UDPOptions) error {
	payload := make([]byte, o.Size)
	var gap float64 // nanoseconds
	if o.Rate > 0 {
		gap = float64(o.Size) * 8 / o.Rate * float64(time.Second)
	}
	for i := int64(0); ctx.Err() == nil; i++ {
		now := time.Since(r.Started)
		due := time.Duration(float64(i) * gap)
		if now >= o.Duration || due >= o.Duration {
			return nil
		}
		if gap > 0 {
			r.Late = max(r.Late, now-due)
		}
		if wait := due - now; wait > 0 {
			time.Sleep(wait)
		}
		binary.BigEndian.PutUint64(payload, uint64(r.Sent))
		control, err := departure(o.TxTime)
		if err != nil {
			return err
		}
		if _, _, err := conn.WriteMsgUDP(payload, control, nil); err == nil {
			r.Sent++
			r.SentBytes += int64(o.Size)
		} else if errors.Is(err, unix.ENOBUFS) || errors.Is(err, unix.EPERM) || errors.Is(err, unix.ECONNREFUSED) {
			r.SendErrors++
		} else {
			return fmt.Errorf("send datagram: %w", err)
		}
	}
	return nil
}

// departure is the control message that asks for a departure time; nil for none.
func departure(delay time.Duration) ([]byte, error) {
	if delay == 0 {
		return nil, nil
	}
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return nil, fmt.Errorf("read the clock: %w", err)
	}
	control := make([]byte, unix.CmsgSpace(8))
	header := (*unix.Cmsghdr)(unsafe.Pointer(&control[0]))
	header.Level, header.Type = unix.SOL_SOCKET, unix.SCM_TXTIME
	header.SetLen(unix.CmsgLen(8))
	binary.NativeEndian.PutUint64(control[unix.CmsgLen(0):], uint64(now.Nano()+delay.Nanoseconds()))
	return control, nil
}

// enableTxTime lets a socket ask for departure times by CLOCK_MONOTONIC.
func enableTxTime(conn *net.UDPConn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return fmt.Errorf("enable SO_TXTIME: %w", err)
	}
	var set error
	err = raw.Control(func(fd uintptr) {
		// struct sock_txtime: the clock and no flags.
		value := string(binary.NativeEndian.AppendUint32(binary.NativeEndian.AppendUint32(nil, unix.CLOCK_MONOTONIC), 0))
		set = unix.SetsockoptString(int(fd), unix.SOL_SOCKET, unix.SO_TXTIME, value)
	})
	if err = errors.Join(err, set); err != nil {
		return fmt.Errorf("enable SO_TXTIME: %w", err)
	}
	return nil
}

// receive reads until the deadline that UDP sets.
func (r *UDPResult) receive(conn *net.UDPConn) error {
	buffer := make([]byte, 1<<16)
	var seen []uint64 // one bit for each sequence number
	next := uint64(0)
	for {
		n, err := conn.Read(buffer)
		if errors.Is(err, unix.ECONNREFUSED) {
			continue
		}
		var netErr net.Error
		if errors.As(err, &netErr) && netErr.Timeout() {
			return nil
		}
		if err != nil {
			return fmt.Errorf("receive datagram: %w", err)
		}
		if n < minUDPSize {
			continue
		}
		r.RecvAfter = time.Since(r.Started)
		r.Received++
		r.Bytes += int64(n)
		slot := int(r.RecvAfter / sampleEvery)
		for len(r.Samples) <= slot {
			r.Samples = append(r.Samples, 0)
		}
		r.Samples[slot] += int64(n)
		number := binary.BigEndian.Uint64(buffer)
		for uint64(len(seen)) <= number/64 {
			seen = append(seen, 0)
		}
		if seen[number/64]&(1<<(number%64)) != 0 {
			r.Duplicates++
		} else if number < next {
			r.Reordered++
		}
		seen[number/64] |= 1 << (number % 64)
		next = max(next, number+1)
	}
}
