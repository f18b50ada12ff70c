// SPDX-License-Identifier: Apache-2.0

package netlab_test

import (
	"context"
	"fmt"
	"time"

	"github.com/kubepace/kubepace/tests/netlab"
	"github.com/kubepace/kubepace/tests/netlab/traffic"
)

// A pod sends to the other host for two seconds, while a meter there looks at every packet.
func Example() {
	network, err := netlab.Build(netlab.Options{Pods: 2})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer network.Close()
	pod := network.Pods[0]

	meter, err := traffic.StartMeter(network.Host, network.HostDevice)
	if err != nil {
		fmt.Println(err)
		return
	}
	result, err := traffic.TCP(context.Background(), traffic.TCPOptions{
		From: pod, To: network.Host, Addr: network.Remote, Flows: 8, Congestion: "cubic", Duration: 2 * time.Second,
	})
	capture, stopErr := meter.Stop()
	if err != nil || stopErr != nil {
		fmt.Println(err, stopErr)
		return
	}
	sent := capture.From(pod.Addr)
	fmt.Println(result.Rate(time.Second, 2*time.Second), result.Jain(), result.Loss())
	fmt.Println(sent.Rate(0, 2*time.Second), sent.Burst(100e6))
}
