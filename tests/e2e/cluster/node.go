// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"bytes"
	"context"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Node is one node. Its processes live in namespaces whose process 1 is node.sh.
type Node struct {
	Name    string
	IP      net.IP
	podCIDR *net.IPNet
	cmd     *exec.Cmd
	ended   chan struct{}
}

// CgroupPrefix begins the names of the cgroups that nodes leave behind.
const CgroupPrefix = "kubepace-e2e-"

func (c *Cluster) startNode(number int) error {
	n := &Node{Name: fmt.Sprintf("node%d", number), IP: net.IPv4(192, 0, 2, byte(number))}
	server := fmt.Sprintf("https://%s", net.JoinHostPort(controlPlaneIP.String(), "6443"))
	user := pkix.Name{CommonName: "system:node:" + n.Name, Organization: []string{"system:nodes"}}
	if _, err := c.plane.UserKubeconfig(n.Name, server, user); err != nil {
		return err
	}
	if err := c.launch(n); err != nil {
		return err
	}
	c.Nodes = append(c.Nodes, n)
	return nil
}

// launch switches a node on.
func (c *Cluster) launch(n *Node) error {
	log, err := os.OpenFile(filepath.Join(c.opts.Logs, n.Name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("start %s: %w", n.Name, err)
	}
	defer log.Close() // the process has a descriptor of its own
	n.cmd = exec.Command(c.opts.NodeInit, n.Name, n.IP.String(), controlPlaneIP.String())
	n.cmd.Stdout, n.cmd.Stderr = log, log
	n.cmd.Env = append(os.Environ(), "KUBE="+c.opts.Kube, "PROGRAMS="+c.opts.Programs, "IMAGES="+c.opts.Images,
		"PKI="+scratch, "LOGS="+c.opts.Logs)
	n.cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWPID | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC,
		Setpgid:    true,
	}
	if err := n.cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", n.Name, err)
	}
	cmd, ended := n.cmd, make(chan struct{})
	n.ended = ended
	go func() {
		// Why it ended stands in its log.
		_ = cmd.Wait()
		close(ended)
	}()
	if err := connect(n); err != nil {
		n.stop()
		return err
	}
	return nil
}

// Reboot switches a node off, as a power failure does, and on again. Nothing of what it had written is left: its pods' containers,
// images, eBPF programs and devices are gone, and the API server knows nothing of it.
func (c *Cluster) Reboot(ctx context.Context, n *Node) error {
	n.stop()
	// The kernel takes the network namespace apart after the last process.
	err := Poll(ctx, 30*time.Second, func(context.Context) error {
		var gone netlink.LinkNotFoundError
		_, err := netlink.LinkByName("to-" + n.Name)
		switch {
		case errors.As(err, &gone):
			return nil
		case err == nil:
			return fmt.Errorf("to-%s is still there", n.Name)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("stop %s: %w", n.Name, err)
	}
	return c.launch(n)
}

// connect gives the node its eth0.
func connect(n *Node) error {
	master, err := netlink.LinkByName(bridge)
	if err != nil {
		return fmt.Errorf("find %s: %w", bridge, err)
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MasterIndex = "to-"+n.Name, master.Attrs().Index
	link := netlink.NewVeth(attrs)
	link.PeerName, link.PeerNamespace = "eth0", netlink.NsPid(n.cmd.Process.Pid)
	if err := netlink.LinkAdd(link); err != nil {
		return fmt.Errorf("add veth to %s: %w", n.Name, err)
	}
	return setUp(attrs.Name)
}

// ErrEnded means that a node's process 1 has ended.
var ErrEnded = errors.New("its process 1 has ended")

func (n *Node) alive() error {
	select {
	case <-n.ended:
		return ErrEnded
	default:
		return nil
	}
}

func (n *Node) stop() {
	// Gone already is fine. Process 1 takes everything in its process namespace with it.
	_ = n.cmd.Process.Kill()
	for {
		select {
		case <-n.ended:
			return
		case <-time.After(100 * time.Millisecond):
			reapOrphans()
		}
	}
}

// reapOrphans waits for ended processes of nodes whose nsenter was killed before them. They are ours then, for we are process 1 where
// nsenter ran, and their node's process 1 does not end before somebody has waited for them.
func reapOrphans() {
	files, _ := filepath.Glob("/proc/[0-9]*/status") // a constant pattern
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			continue // gone
		}
		inside := ""
		for line := range strings.Lines(string(text)) {
			// One number for each namespace: a node's processes have two, the nodes' own process 1 is waited for elsewhere.
			if numbers, ok := strings.CutPrefix(line, "NSpid:"); ok && len(strings.Fields(numbers)) > 1 {
				inside = strings.Fields(numbers)[1]
			}
		}
		if inside == "" || inside == "1" || !bytes.Contains(text, []byte("\nState:\tZ")) || !bytes.Contains(text, []byte("\nPPid:\t1\n")) {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file))); err == nil {
			_, _ = unix.Wait4(pid, nil, unix.WNOHANG, nil) // gone already is fine
		}
	}
}

// Command is a command inside the node, as its administrator would call it.
func (n *Node) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	enter := []string{"--target", strconv.Itoa(n.cmd.Process.Pid), "--mount", "--net", "--pid", "--uts", "--ipc", "--", name}
	return exec.CommandContext(ctx, "nsenter", append(enter, args...)...)
}

// Output runs a command inside the node and returns what it printed.
func (n *Node) Output(ctx context.Context, name string, args ...string) (string, error) {
	return output(n.Command(ctx, name, args...))
}

// LinkBytes is what a device of the node has received and sent, by the kernel's count.
func (n *Node) LinkBytes(name string) (received, sent int64, err error) {
	ns, err := netns.GetFromPid(n.cmd.Process.Pid)
	if err != nil {
		return 0, 0, fmt.Errorf("open network namespace of %s: %w", n.Name, err)
	}
	defer ns.Close()
	h, err := netlink.NewHandleAt(ns)
	if err != nil {
		return 0, 0, fmt.Errorf("look into %s: %w", n.Name, err)
	}
	defer h.Close()
	link, err := h.LinkByName(name)
	if err != nil {
		return 0, 0, fmt.Errorf("find %s on %s: %w", name, n.Name, err)
	}
	statistics := link.Attrs().Statistics
	return int64(statistics.RxBytes), int64(statistics.TxBytes), nil
}

// Kill kills programs of the node (SIGKILL), such as kubelet; node.sh starts them again after a second.
func (n *Node) Kill(ctx context.Context, programs ...string) error {
	for _, program := range programs {
		pid, err := n.Output(ctx, "cat", "/run/"+program+".pid")
		if err != nil {
			return err
		}
		if _, err := n.Output(ctx, "kill", "-KILL", strings.TrimSpace(pid)); err != nil {
			return fmt.Errorf("kill %s on %s: %w", program, n.Name, err)
		}
	}
	return nil
}

// KillProcess kills the process (SIGKILL) of the node's network namespace whose command line begins with these words, such as
// that of a pod on the host's network.
func (n *Node) KillProcess(words ...string) error {
	own, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", n.cmd.Process.Pid))
	if err != nil {
		return fmt.Errorf("find network namespace of %s: %w", n.Name, err)
	}
	want := []byte(strings.Join(words, "\x00") + "\x00")
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return fmt.Errorf("list processes: %w", err)
	}
	for _, file := range files {
		line, err := os.ReadFile(file)
		if err != nil || !bytes.HasPrefix(line, want) {
			continue // processes end at any time
		}
		dir := filepath.Dir(file)
		if ns, err := os.Readlink(dir + "/ns/net"); err != nil || ns != own {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil {
			return fmt.Errorf("read pid of %s: %w", file, err)
		}
		if err := unix.Kill(pid, unix.SIGKILL); err != nil {
			return fmt.Errorf("kill %s on %s: %w", strings.Join(words, " "), n.Name, err)
		}
		return nil
	}
	return fmt.Errorf("kill %s on %s: %w", strings.Join(words, " "), n.Name, os.ErrNotExist)
}

// Kubectl runs kubectl as the cluster's administrator and returns what it printed.
func (c *Cluster) Kubectl(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(c.opts.Kube, "kubectl"), args...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+c.Kubeconfig)
	return output(cmd)
}

func output(cmd *exec.Cmd) (string, error) {
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}

// RemoveCgroups removes the empty cgroups that the nodes' kubelets left behind. Call it once everything has ended.
func RemoveCgroups() error {
	var errs []error
	for _, pattern := range []string{"/sys/fs/cgroup/" + CgroupPrefix + "*", "/sys/fs/cgroup/*/" + CgroupPrefix + "*"} {
		roots, err := filepath.Glob(pattern)
		if err != nil {
			return fmt.Errorf("find cgroups: %w", err)
		}
		for _, root := range roots {
			errs = append(errs, removeCgroup(root))
		}
	}
	return errors.Join(errs...)
}

// removeCgroup removes a cgroup, those in it first.
func removeCgroup(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		return fmt.Errorf("read cgroup: %w", err)
	}
	var errs []error
	for _, entry := range entries {
		if entry.IsDir() {
			errs = append(errs, removeCgroup(filepath.Join(dir, entry.Name())))
		}
	}
	if err := unix.Rmdir(dir); err != nil {
		errs = append(errs, fmt.Errorf("remove cgroup %s: %w", dir, err))
	}
	return errors.Join(errs...)
}
