// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"regexp"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/kubepace/kubepace/bandwidth"
	"github.com/kubepace/kubepace/enforcer/datapath"
)

// result is what one file says: one network's interfaces in one sandbox.
type result struct {
	pod         datapath.Pod
	sandbox     string // id of the container that holds the namespaces
	netns       string // file name in the folder of network namespaces
	ips         []netip.Addr
	hostDevices []string
	inside      []string // interfaces of the sandbox, loopback left out
	rate        bandwidth.Rate
	rateErr     error
	written     time.Time
}

// errNoPod means that a file is about something else than a pod of Kubernetes.
var errNoPod = errors.New("is about no pod")

// kind is what libcni calls the format of its files.
const kind = "cniCacheV1"

// content is libcni's file, as far as it is read.
type content struct {
	Kind           string      `json:"kind"`
	ContainerID    string      `json:"containerId"`
	IfName         string      `json:"ifName"`
	Netns          string      `json:"netns"` // since libcni 1.2
	Args           [][2]string `json:"cniArgs"`
	CapabilityArgs struct {
		Bandwidth *struct {
			EgressRate json.Number `json:"egressRate"` // bits/s
		} `json:"bandwidth"`
	} `json:"capabilityArgs"`
	Result struct {
		Interfaces []struct {
			Name    string `json:"name"`
			Sandbox string `json:"sandbox"` // empty for the node's own
		} `json:"interfaces"`
		IPs []struct {
			Address string `json:"address"`
		} `json:"ips"`
		IP4, IP6 struct { // specification 0.2
			IP string `json:"ip"`
		}
	} `json:"result"`
}

// Bounds of what one file may say: everything is kept in memory for as long as the file is there.
const (
	maxAddresses = 64
	maxDevices   = 64
)

var (
	uidPattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$`)
	idPattern  = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$`)
)

// parse reads one file. netnsDirs are the folders whose namespaces are believed in.
func parse(data []byte, netnsDirs []string) (result, error) {
	var c content
	if err := json.Unmarshal(data, &c); err != nil {
		return result{}, err
	}
	if c.Kind != kind {
		return result{}, fmt.Errorf("kind %q is not %s", clip(c.Kind), kind)
	}
	r := result{sandbox: c.ContainerID, pod: c.pod()}
	if r.pod.UID == "" || r.pod.Namespace == "" || r.pod.Name == "" {
		return result{}, errNoPod
	}
	if err := checkPod(r.pod); err != nil {
		return result{}, err
	}
	if !idPattern.MatchString(c.ContainerID) {
		return result{}, fmt.Errorf("containerId %q is not usable", clip(c.ContainerID))
	}
	r.netns = fileName(c.namespace(), netnsDirs)
	r.ips = c.addresses()
	for _, i := range c.Result.Interfaces {
		switch {
		case i.Name == "":
		case i.Sandbox == "" && len(r.hostDevices) < maxDevices:
			r.hostDevices = append(r.hostDevices, clip(i.Name))
		case i.Sandbox != "" && i.Name != "lo" && len(r.inside) < maxDevices:
			r.inside = append(r.inside, clip(i.Name))
		}
	}
	r.rate, r.rateErr = c.rate()
	return r, nil
}

func (c *content) pod() (p datapath.Pod) {
	for _, arg := range c.Args {
		switch arg[0] {
		case "K8S_POD_NAMESPACE":
			p.Namespace = arg[1]
		case "K8S_POD_NAME":
			p.Name = arg[1]
		case "K8S_POD_UID":
			p.UID = arg[1]
		}
	}
	return p
}

// checkPod: these texts are printed on terminals, and the UID is a key in the kernel.
func checkPod(p datapath.Pod) error {
	if !uidPattern.MatchString(p.UID) {
		return fmt.Errorf("K8S_POD_UID %q is not usable", clip(p.UID))
	}
	if problems := validation.IsDNS1123Label(p.Namespace); len(problems) > 0 {
		return fmt.Errorf("K8S_POD_NAMESPACE %q: %s", clip(p.Namespace), problems[0])
	}
	if problems := validation.IsDNS1123Subdomain(p.Name); len(problems) > 0 {
		return fmt.Errorf("K8S_POD_NAME %q: %s", clip(p.Name), problems[0])
	}
	return nil
}

// namespace is the path that the file gives: in a field of its own, or in older ones with the interface.
func (c *content) namespace() string {
	if c.Netns != "" {
		return c.Netns
	}
	for _, i := range c.Result.Interfaces {
		if i.Name == c.IfName && i.Sandbox != "" {
			return i.Sandbox
		}
	}
	return ""
}

// fileName is the last element of a path into one of the folders, else empty. Only that element is ever used: a path
// to anywhere else (another process, another mount) is not followed.
func fileName(path string, dirs []string) string {
	if !filepath.IsAbs(path) || len(path) > 4096 {
		return ""
	}
	dir, name := filepath.Split(filepath.Clean(path))
	if !slices.Contains(dirs, filepath.Clean(dir)) || !idPattern.MatchString(name) {
		return ""
	}
	return name
}

// addresses leaves out what every namespace has.
func (c *content) addresses() (list []netip.Addr) {
	texts := []string{c.Result.IP4.IP, c.Result.IP6.IP}
	for _, entry := range c.Result.IPs {
		texts = append(texts, entry.Address)
	}
	for _, text := range texts {
		prefix, err := netip.ParsePrefix(text)
		if err != nil {
			continue
		}
		ip := prefix.Addr().Unmap()
		if len(list) < maxAddresses && !ip.IsLoopback() && !ip.IsLinkLocalUnicast() && !slices.Contains(list, ip) {
			list = append(list, ip)
		}
	}
	return list
}

// rate is what the runtime read from the pod's annotation when it made the sandbox.
func (c *content) rate() (bandwidth.Rate, error) {
	b := c.CapabilityArgs.Bandwidth
	if b == nil || b.EgressRate == "" || b.EgressRate == "0" {
		return 0, nil
	}
	// Parse takes a plain number as it takes "10M", and holds it to the same bounds.
	rate, err := bandwidth.Parse(b.EgressRate.String())
	if err != nil {
		return 0, fmt.Errorf("capabilityArgs.bandwidth.egressRate: %w", err)
	}
	return rate, nil
}

// clip keeps hostile text from filling memory and the log.
func clip(text string) string {
	if len(text) > 64 {
		return text[:64] + "…"
	}
	return text
}
