// SPDX-License-Identifier: Apache-2.0

package traffic

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// PingOptions describe a series of ICMP echo requests.
type PingOptions struct {
	From     Runner
	Addr     netip.Addr    // who answers: any address, its kernel does it
	Interval time.Duration // between requests; 50 ms if 0
	Duration time.Duration // of sending
	Timeout  time.Duration // a later answer counts as lost; 3 s if 0
	Size     int           // bytes after the ICMP header; 56 if 0
}

// PingResult holds the round-trip times in the order of the requests, without the lost ones.
type PingResult struct {
	Sent, Lost int
	RTTs       []time.Duration
}

// Loss is the share of requests without an answer, from 0 to 1.
func (r PingResult) Loss() float64 {
	if r.Sent == 0 {
		return 0
	}
	return float64(r.Lost) / float64(r.Sent)
}

// Percentile of the round-trip times; p from 0 to 100, 100 being the worst.
func (r PingResult) Percentile(p float64) time.Duration { return Percentile(r.RTTs, p) }

// Mean round-trip time.
func (r PingResult) Mean() time.Duration { return Mean(r.RTTs) }

func (r PingResult) String() string {
	return fmt.Sprintf("%d sent, %d lost, rtt mean %v p50 %v p99 %v max %v", r.Sent, r.Lost,
		r.Mean().Round(time.Microsecond), r.Percentile(50).Round(time.Microsecond),
		r.Percentile(99).Round(time.Microsecond), r.Percentile(100).Round(time.Microsecond))
}

// pingID tells the probes of one process apart: a raw socket gets every answer.
var pingID atomic.Uint32

// Numbers of the two protocols' echo messages, and the longest ICMP header.
const (
	echoRequest, echoReply   = 8, 0
	echoRequest6, echoReply6 = 128, 129
	icmpHeader               = 8
)

// Ping sends requests for the duration, or until the context ends, and waits for the last answers. All sockets and
// goroutines are gone when it returns.
func Ping(ctx context.Context, o PingOptions) (PingResult, error) {
	if o.Interval == 0 {
		o.Interval = 50 * time.Millisecond
	}
	if o.Timeout == 0 {
		o.Timeout = 3 * time.Second
	}
	if o.Size == 0 {
		o.Size = 56
	}
	network, listen := "ip4:icmp", "0.0.0.0"
	if o.Addr.Is6() {
		network, listen = "ip6:ipv6-icmp", "::"
	}
	var conn *net.IPConn
	err := o.From.Do(func() error {
		c, err := net.ListenPacket(network, listen)
		if err != nil {
			return err
		}
		conn = c.(*net.IPConn)
		return stampArrivals(conn)
	})
	if err != nil {
		return PingResult{}, fmt.Errorf("open ICMP socket: %w", err)
	}
	defer conn.Close()
	p := pinger{PingOptions: o, conn: conn, id: uint16(pingID.Add(1)), started: time.Now()}
	received := make(chan error, 1)
	go func() { received <- p.receive() }()
	sendErr := p.send(ctx)
	_ = conn.SetReadDeadline(time.Now().Add(p.wait()))
	return p.collect(errors.Join(sendErr, <-received))
}

// pinger is a running probe. Requests and answers are kept by sequence number, as times since the start.
type pinger struct {
	PingOptions
	conn    *net.IPConn
	id      uint16
	started time.Time
	sent    [1 << 16]atomic.Int64 // nanoseconds since started, 0 for not sent
	answers [1 << 16]time.Duration
	count   atomic.Int32 // sent
	got     atomic.Int32
}

func (p *pinger) send(ctx context.Context) error {
	for i := range len(p.sent) {
		due := time.Duration(i) * p.Interval
		if due >= p.Duration {
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(due - time.Since(p.started)):
		}
		p.sent[i].Store(int64(time.Now().Round(0).Sub(p.started.Round(0))))
		p.count.Add(1)
		if _, err := p.conn.WriteTo(p.request(uint16(i)), &net.IPAddr{IP: p.Addr.AsSlice()}); err != nil {
			return fmt.Errorf("send echo request: %w", err)
		}
	}
	return nil
}

func (p *pinger) request(sequence uint16) []byte {
	message := make([]byte, icmpHeader+p.Size)
	message[0] = echoRequest
	if p.Addr.Is6() {
		message[0] = echoRequest6 // the kernel adds the checksum
	}
	binary.BigEndian.PutUint16(message[4:], p.id)
	binary.BigEndian.PutUint16(message[6:], sequence)
	if !p.Addr.Is6() {
		binary.BigEndian.PutUint16(message[2:], checksum(message))
	}
	return message
}

// stampArrivals asks the kernel when answers arrive, as ping(8) does: how long the prober itself waits for a processor
// that others use is no time of the network's.
func stampArrivals(conn *net.IPConn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var set error
	err = raw.Control(func(fd uintptr) { set = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1) })
	return errors.Join(err, set)
}

// arrival is the time in a message's control data.
func arrival(oob []byte) (time.Time, error) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return time.Time{}, fmt.Errorf("read control messages: %w", err)
	}
	for _, m := range messages {
		var at unix.Timespec
		if m.Header.Level == unix.SOL_SOCKET && m.Header.Type == unix.SCM_TIMESTAMPNS && len(m.Data) == binary.Size(at) {
			if _, err := binary.Decode(m.Data, binary.NativeEndian, &at); err != nil {
				return time.Time{}, fmt.Errorf("read time of arrival: %w", err)
			}
			return time.Unix(at.Unix()), nil
		}
	}
	return time.Time{}, errors.New("no time of arrival")
}

// wait is how long answers may still come: not at all if none is missing.
func (p *pinger) wait() time.Duration {
	if p.got.Load() == p.count.Load() {
		return 0
	}
	return p.Timeout
}

func (p *pinger) receive() error {
	space, oob := make([]byte, 1<<16), make([]byte, 128)
	reply := byte(echoReply)
	if p.Addr.Is6() {
		reply = echoReply6
	}
	for {
		n, control, _, from, err := p.conn.ReadMsgIP(space, oob)
		var netErr net.Error
		if errors.As(err, &netErr) && netErr.Timeout() {
			return nil
		}
		if err != nil {
			return fmt.Errorf("receive echo reply: %w", err)
		}
		source, err := netip.ParseAddr(from.String())
		if err != nil {
			return fmt.Errorf("sender of echo reply: %w", err)
		}
		buffer := space[:n]
		if !p.Addr.Is6() && n > 0 { // a raw socket of IPv4 gives its header as well
			buffer = buffer[min(n, int(buffer[0]&0xf)*4):]
		}
		if len(buffer) < icmpHeader || buffer[0] != reply || binary.BigEndian.Uint16(buffer[4:]) != p.id || source.Unmap() != p.Addr {
			continue
		}
		arrived, err := arrival(oob[:control])
		if err != nil {
			return fmt.Errorf("receive echo reply: %w", err)
		}
		now := arrived.Sub(p.started.Round(0)) // by the wall clock, as the kernel's
		sequence := binary.BigEndian.Uint16(buffer[6:])
		at := time.Duration(p.sent[sequence].Load())
		if at == 0 || p.answers[sequence] != 0 {
			continue
		}
		p.answers[sequence] = now - at
		p.got.Add(1)
		if time.Duration(int(sequence)+1)*p.Interval >= p.Duration && p.got.Load() == p.count.Load() {
			return nil
		}
	}
}

func (p *pinger) collect(err error) (PingResult, error) {
	result := PingResult{Sent: int(p.count.Load())}
	for _, rtt := range p.answers[:result.Sent] {
		if rtt == 0 || rtt > p.Timeout {
			result.Lost++
		} else {
			result.RTTs = append(result.RTTs, rtt)
		}
	}
	return result, err
}

// checksum is the Internet checksum, RFC 1071.
func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	if len(b)%2 == 1 {
		sum += uint32(b[len(b)-1]) << 8
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}
