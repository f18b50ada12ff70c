// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/kubepace/kubepace/tests/demo/chart"
	"github.com/kubepace/kubepace/tests/demo/iperf"
	"github.com/kubepace/kubepace/tests/demo/node"
	"github.com/kubepace/kubepace/tests/demo/result"
)

const firstPort = 5201

// listTraffic is how long all pods send while `list` looks: long enough for it to start and read twice, also on an
// emulated processor.
const listTraffic = 5 * time.Second

// sendTraffic lets every admitted pod send TCP to the other host, one after another: so each figure is the limit's,
// whatever the machine could forward for all of them together. Nothing else is started meanwhile.
func (d *demo) sendTraffic(ctx context.Context) error {
	var err error
	if d.cc, err = d.congestionControl(); err != nil {
		return err
	}
	d.say("each admitted pod sends TCP (%s) to the other host for %v, one after another ...", d.cc, d.traffic)
	for _, p := range d.admitted() {
		if p.received, err = d.transfer(ctx, p, firstPort, d.traffic); err != nil {
			return err
		}
		p.MeasuredBPS = int64(p.received.BitsPerSecond)
		d.say("  %s/%s: %.2f Mbit/s of payload arrived in %.2f s", p.Namespace, p.Pod.Pod, p.received.BitsPerSecond/1e6, p.received.Duration.Seconds())
	}
	return d.listWhileSending(ctx)
}

// listWhileSending shows the enforcer's own view of all pods at once. What arrives is not measured.
func (d *demo) listWhileSending(ctx context.Context) error {
	d.say("all of them at once for %v, while the enforcer looks ...", listTraffic)
	group, ctx := errgroup.WithContext(ctx)
	for i, p := range d.admitted() {
		group.Go(func() error {
			_, err := d.transfer(ctx, p, firstPort+1+i, listTraffic)
			return err
		})
	}
	group.Go(func() error {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(listTraffic / 5):
			return d.showList(ctx)
		}
	})
	return group.Wait()
}

// congestionControl is the one asked for where the kernel has it, and the kernel's own choice elsewhere. It is set per
// socket: a namespace may only choose among what the first one allows, and the defaults of distributions differ.
func (d *demo) congestionControl() (string, error) {
	const folder = "/proc/sys/net/ipv4/"
	available, err := os.ReadFile(folder + "tcp_available_congestion_control")
	if err != nil {
		return "", fmt.Errorf("read congestion controls: %w", err)
	}
	if slices.Contains(strings.Fields(string(available)), d.cc) {
		return d.cc, nil
	}
	inForce, err := os.ReadFile(folder + "tcp_congestion_control")
	if err != nil {
		return "", fmt.Errorf("read congestion control: %w", err)
	}
	return strings.TrimSpace(string(inForce)), nil
}

func (d *demo) admitted() []*pod {
	var admitted []*pod
	for _, p := range d.pods {
		if !p.Refused {
			admitted = append(admitted, p)
		}
	}
	return admitted
}

// transfer runs one iperf3 test from the pod to the other host and returns what its server, the receiver, saw.
func (d *demo) transfer(ctx context.Context, p *pod, port int, duration time.Duration) (iperf.Received, error) {
	var seen, stderr bytes.Buffer
	server := exec.CommandContext(ctx, "iperf3", "-s", "-1", "-J", "-i", "0.5", "-B", node.OtherHost.String(), "-p", strconv.Itoa(port))
	server.Stdout, server.Stderr = &seen, &stderr
	if err := node.Start(d.node.Other, server); err != nil {
		return iperf.Received{}, fmt.Errorf("start iperf3 server: %w", err)
	}
	clientErr := d.runClient(ctx, p, port, duration)
	if clientErr != nil {
		// Its server would wait for another client for ever.
		_ = server.Process.Kill()
	}
	serverErr := server.Wait()
	file := fmt.Sprintf("iperf3-%s-%d.json", p.net.Name, port)
	if err := os.WriteFile(filepath.Join(d.logs, file), seen.Bytes(), 0o644); err != nil {
		return iperf.Received{}, fmt.Errorf("keep iperf3 output: %w", err)
	}
	if clientErr != nil {
		return iperf.Received{}, fmt.Errorf("traffic of %s: %w", p.net.Name, clientErr)
	}
	received, err := iperf.Parse(seen.Bytes())
	if err != nil {
		return iperf.Received{}, fmt.Errorf("traffic of %s: %w", p.net.Name, errors.Join(err, serverErr))
	}
	return received, nil
}

// runClient tries again while the server is not listening yet. Without -J: with it, iperf3 3.12 exits with 0 on errors.
func (d *demo) runClient(ctx context.Context, p *pod, port int, duration time.Duration) error {
	seconds := strconv.FormatFloat(duration.Seconds(), 'f', -1, 64)
	for attempt := 0; ; attempt++ {
		var output bytes.Buffer
		client := exec.CommandContext(ctx, "iperf3", "-c", node.OtherHost.String(), "-p", strconv.Itoa(port), "-t", seconds, "-C", d.cc, "--connect-timeout", "5000")
		client.Stdout, client.Stderr = &output, &output
		if err := node.Start(p.net.Namespace, client); err != nil {
			return fmt.Errorf("start iperf3 client: %w", err)
		}
		err := client.Wait()
		if err == nil {
			return nil
		}
		if attempt == 20 || ctx.Err() != nil || !bytes.Contains(output.Bytes(), []byte("refused")) {
			return fmt.Errorf("iperf3 client: %w: %s", err, bytes.TrimSpace(output.Bytes()))
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// report is what was seen, for judgement.
func (d *demo) report() result.Report {
	pods := make([]result.Pod, 0, len(d.pods))
	for _, p := range d.pods {
		pods = append(pods, p.Pod)
	}
	return result.New(kernelRelease(), pods)
}

// chart is the picture of the report.
func (d *demo) chart(report result.Report) chart.Chart {
	c := chart.Chart{
		Title:    "What each pod sends, and its limit",
		Subtitle: fmt.Sprintf("wire rate at the receiver, mean of each half second; %s, kernel %s", report.Mode, report.Kernel),
	}
	for _, p := range d.admitted() {
		asked := "nothing asked"
		if p.Asked != "" {
			asked = "asked " + p.Asked
		}
		series := chart.Series{Name: p.Namespace + "/" + p.Pod.Pod, Note: fmt.Sprintf("%s, admitted %s", asked, p.Admitted), Limit: float64(p.LimitBPS)}
		for _, i := range p.received.Intervals {
			// The last interval may be a few packets in a millisecond: no rate.
			if i.End-i.Start < 100*time.Millisecond {
				continue
			}
			series.Points = append(series.Points, chart.Point{Start: i.Start, End: i.End, BitsPerSecond: i.BitsPerSecond * result.FrameBytes / result.PayloadBytes})
		}
		c.Series = append(c.Series, series)
	}
	return c
}
