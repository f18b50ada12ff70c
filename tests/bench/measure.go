// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/kubepace/kubepace/tests/bench/result"
	"github.com/kubepace/kubepace/tests/netlab/traffic"
)

const (
	pingInterval = 50 * time.Millisecond
	// settle is how long after the transfer's start pings and the rate are counted.
	settle  = time.Second
	control = time.Second // of pings with nothing else to send
	// rateWindow and ratePackets are the least over which a limit must hold.
	rateWindow, ratePackets = 5 * time.Second, 200
)

// measurement is what is seen of one transfer.
type measurement struct {
	tcp     traffic.TCPResult
	ping    traffic.PingResult
	capture traffic.Capture // of the pod's packets at the host
	cpu     time.Duration
	// cpuFrom and cpuTo bound the time that cpu is for, since the capture's start.
	cpuFrom, cpuTo time.Duration
}

// measure runs one transfer with a ping beside it. A meter that missed packets is returned as an error that wraps
// traffic.ErrMeterDropped, with the measurement.
func (l *lab) measure(ctx context.Context, s result.Setting, duration time.Duration) (m measurement, err error) {
	meter, err := traffic.StartMeter(l.Host, l.HostDevice)
	if err != nil {
		return m, err
	}
	runErr := l.transfer(ctx, &m, s, duration)
	capture, meterErr := meter.Stop()
	m.capture = capture.From(l.pod.Addr)
	m.cpuFrom -= time.Duration(capture.Started.UnixNano())
	m.cpuTo -= time.Duration(capture.Started.UnixNano())
	return m, errors.Join(runErr, meterErr)
}

// transfer leaves cpuFrom and cpuTo as times since 1970.
func (l *lab) transfer(ctx context.Context, m *measurement, s result.Setting, duration time.Duration) error {
	pinged := make(chan error, 1)
	go func() {
		time.Sleep(settle)
		var err error
		m.ping, err = traffic.Ping(ctx, traffic.PingOptions{
			From: l.pod, Addr: l.Remote, Interval: pingInterval, Duration: duration - settle,
		})
		pinged <- err
	}()
	before, beforeErr := cpuTime()
	m.cpuFrom = time.Duration(time.Now().UnixNano())
	var tcpErr error
	m.tcp, tcpErr = traffic.TCP(ctx, traffic.TCPOptions{
		From: l.pod, To: l.Host, Addr: l.Remote, Flows: s.Flows, Congestion: s.CC, Duration: duration,
	})
	after, afterErr := cpuTime()
	m.cpu, m.cpuTo = after-before, time.Duration(time.Now().UnixNano())
	return errors.Join(tcpErr, beforeErr, afterErr, <-pinged)
}

// toCase computes a case's figures; drops and the names are the caller's.
func (m measurement) toCase(s result.Setting) result.Case {
	began := m.tcp.Started.Sub(m.capture.Started)
	c := result.Case{
		LimitBps: s.LimitBps, CC: s.CC, Flows: s.Flows, Path: s.Path,
		RateBps:         m.capture.Rate(began+settle, began+m.tcp.Elapsed),
		FirstSecondBits: 8 * m.capture.Bytes(began, began+time.Second),
		PingMs:          pingOf(m.ping),
		JitterMs:        result.Milliseconds(result.Jitter(m.ping.RTTs)),
		Jain:            m.tcp.Jain(),
	}
	c.Least5sBps, c.Most5sBps = m.capture.Extremes(began+settle, began+m.tcp.Elapsed, rateWindow, ratePackets)
	segments := 0
	for _, p := range m.capture.Packets {
		segments += p.Segments
	}
	c.SegmentsPerPacket = float64(segments) / float64(max(len(m.capture.Packets), 1))
	for _, flow := range m.tcp.Flows {
		c.Retransmits += int64(flow.Retransmits)
	}
	if bytes := m.capture.Bytes(m.cpuFrom, m.cpuTo); bytes > 0 {
		c.CPUSecondsPerGB = m.cpu.Seconds() / (float64(bytes) / 1e9)
	}
	return c
}

func pingOf(p traffic.PingResult) result.Ping {
	return result.Ping{
		P50: result.Milliseconds(p.Percentile(50)), P99: result.Milliseconds(p.Percentile(99)),
		Max: result.Milliseconds(p.Percentile(100)), Lost: p.Lost,
	}
}

// control pings with nothing else to send.
func (l *lab) control(ctx context.Context, s result.Setting) (result.Control, error) {
	ping, err := traffic.Ping(ctx, traffic.PingOptions{From: l.pod, Addr: l.Remote, Interval: pingInterval, Duration: control})
	if err != nil {
		return result.Control{}, fmt.Errorf("control ping: %w", err)
	}
	return result.Control{Setting: s, PingMs: pingOf(ping)}, nil
}
