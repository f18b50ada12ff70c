// SPDX-License-Identifier: Apache-2.0

package cnilab

import (
	"encoding/json"
	"fmt"
	"strings"
	"syscall"
	"testing"
)

// Networks as CNIs set them up. $DATA is where host-local keeps its addresses.
const (
	bridge = `{"cniVersion":"1.0.0","name":"cbr0","plugins":[{"type":"bridge","bridge":"cbr0","isDefaultGateway":true,
"ipam":{"type":"host-local","dataDir":"$DATA","ranges":[[{"subnet":"10.88.0.0/16"}],[{"subnet":"fd00:88::/64"}]]}}]}`
	second = `{"cniVersion":"1.0.0","name":"net-second","plugins":[{"type":"bridge","bridge":"br2",
"ipam":{"type":"host-local","dataDir":"$DATA","ranges":[[{"subnet":"10.90.0.0/16"}]]}}]}`
	ptp = `{"cniVersion":"1.0.0","name":"ptp","plugins":[{"type":"ptp","ipam":{"type":"host-local","dataDir":"$DATA",
"ranges":[[{"subnet":"10.89.0.0/16"}],[{"subnet":"fd00:89::/64"}]],"routes":[{"dst":"0.0.0.0/0"},{"dst":"::/0"}]}}]}`
	ipv6 = `{"cniVersion":"1.0.0","name":"v6","plugins":[{"type":"bridge","bridge":"br6","isDefaultGateway":true,
"ipam":{"type":"host-local","dataDir":"$DATA","ranges":[[{"subnet":"fd00:91::/64"}]]}}]}`
	old = `{"cniVersion":"0.3.1","name":"old","plugins":[{"type":"bridge","bridge":"br3",
"ipam":{"type":"host-local","dataDir":"$DATA","ranges":[[{"subnet":"10.92.0.0/16"}]]}}]}`
	// What flannel's plugin hands to the bridge plugin, with the MTU of VXLAN; of host-gw it is the same with 1500.
	flannel = `{"cniVersion":"0.3.1","name":"flannel","plugins":[{"type":"bridge","bridge":"cni0","hairpinMode":true,"isGateway":true,
"isDefaultGateway":true,"ipMasq":false,"mtu":%d,"ipam":{"type":"host-local","dataDir":"$DATA","ranges":[[{"subnet":"%s"}]],"routes":[{"dst":"10.244.0.0/16"}]}}]}`
)

// TestFoundByCNIResultAlone: the API never tells an address, so only the results of CNI ADD lead to the pods' devices.
func TestFoundByCNIResultAlone(t *testing.T) {
	l := newLab(t)
	l.start()
	for i, test := range []struct{ name, conflist string }{
		{"bridge", bridge}, {"ptp", ptp}, {"ipv6", ipv6}, {"older-format", old},
		{"flannel-vxlan", fmt.Sprintf(flannel, 1450, "10.244.0.0/24")},
		{"flannel-host-gw", fmt.Sprintf(strings.Replace(flannel, "cni0", "cni1", 1), 1500, "10.244.1.0/24")},
	} {
		p := l.pod(test.name, fmt.Sprintf("%dM", i+1))
		l.add(p, test.conflist, "eth0")
	}
	l.held("bridge 1M 1", "ptp 2M 1", "ipv6 3M 1", "older-format 4M 1", "flannel-vxlan 5M 1", "flannel-host-gw 6M 1")
}

// TestSecondNetworkSharesTheClock: another interface, with a result of its own, before the agent starts or while it
// runs.
func TestSecondNetworkSharesTheClock(t *testing.T) {
	l := newLab(t)
	p := l.pod("multus", "10M")
	l.add(p, bridge, "eth0")
	l.start()
	l.held("multus 10M 1")
	l.add(p, second, "net1")
	l.held("multus 10M 2")
	l.stop(syscall.SIGKILL)
	l.add(p, strings.NewReplacer("net-second", "net-third", "br2", "br4", "10.90", "10.93").Replace(second), "net2")
	l.start()
	l.held("multus 10M 3")
}

// TestBurst starts 100 pods at once, and others one by one, and reports the times; what it wants is that every limit
// comes into force, and that what a pod sends from then on goes by it.
func TestBurst(t *testing.T) {
	l := newLab(t)
	l.start()
	l.held()
	network, err := l.NewNetwork(bridge)
	l.must(err, "network")
	all := 100
	if testing.Short() {
		all = 20
	}
	for _, test := range []struct{ pods, atOnce int }{{10, 1}, {all, all}} {
		var pods []*Pod
		for i := range test.pods {
			pods = append(pods, l.pod(fmt.Sprintf("p%d-of-%d", i, test.pods), "10M"))
		}
		b, err := RunBurst(l.context(), l.agent.Enforced, network, pods, test.atOnce)
		text, _ := json.Marshal(b)
		t.Logf("%s", text)
		l.must(err, "burst")
		if b.Enforced != test.pods {
			t.Errorf("%d of %d pods are held", b.Enforced, test.pods)
		}
	}
	before, err := l.States()
	l.must(err, "read state")
	for _, p := range l.pods {
		l.must(p.Do(func() error { return Send(packets) }), "send")
	}
	after, err := l.States()
	l.must(err, "read state")
	for _, p := range l.pods {
		if n := after[p.UID()].Counters.Packets - before[p.UID()].Counters.Packets; n < packets {
			t.Errorf("%s sent %d packets and %d went by its limit", p.Object.Name, packets, n)
		}
	}
}

// TestPodsThatEnd: after CNI DEL nothing is left of a pod.
func TestPodsThatEnd(t *testing.T) {
	l := newLab(t)
	l.start()
	a, b := l.pod("a", "10M"), l.pod("b", "20M")
	l.add(a, bridge, "eth0")
	l.add(b, bridge, "eth0")
	l.held("a 10M 1", "b 20M 1")
	l.must(a.Close(), "end pod")
	l.api.Remove(a.Object)
	l.held("b 20M 1")
}

// TestOutage: pods that start while the API is away get the limit that they started with; those that it knew keep
// theirs; and when it is back, its word counts.
func TestOutage(t *testing.T) {
	l := newLab(t)
	l.start()
	known, gone := l.pod("known", "10M"), l.pod("gone", "20M")
	l.add(known, bridge, "eth0")
	l.add(gone, bridge, "eth0")
	l.held("known 10M 1", "gone 20M 1")
	l.must(l.api.Stop(), "stop API")

	fresh := l.unknown("new", "30M")
	l.add(fresh, bridge, "eth0")
	free := l.unknown("free", "")
	l.add(free, bridge, "eth0")
	short := l.unknown("short", "5M")
	l.add(short, bridge, "eth0")
	l.held("known 10M 1", "gone 20M 1", "new 30M 1", "short 5M 1")
	l.must(short.Close(), "end pod") // it comes and goes within the outage
	l.held("known 10M 1", "gone 20M 1", "new 30M 1")

	// A new agent that has never seen the API knows them too.
	l.stop(syscall.SIGKILL)
	l.start()
	later := l.unknown("later", "40M")
	l.add(later, bridge, "eth0")
	l.held("known 10M 1", "gone 20M 1", "new 30M 1", "later 40M 1")

	before := l.api.Calls("list") + l.api.Calls("watch")
	fresh.Object.Annotations["kubernetes.io/egress-bandwidth"] = "35M" // changed meanwhile
	for _, p := range []*Pod{fresh, free, later} {
		l.api.Put(p.Object)
	}
	l.api.Remove(gone.Object) // deleted meanwhile, its sandbox gone too
	l.must(gone.Close(), "end pod")
	l.must(l.api.Start(), "start API")
	l.held("known 10M 1", "new 35M 1", "later 40M 1")
	if calls := l.api.Calls("list") + l.api.Calls("watch") - before; calls > 4 {
		t.Errorf("%d lists and watches when the API came back; want no storm", calls)
	}
}
