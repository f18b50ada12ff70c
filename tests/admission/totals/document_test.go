// SPDX-License-Identifier: Apache-2.0

package totals

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kubepace/kubepace/tests/admission/lab"
)

// console is one command of a document with the output that stands below it.
type console struct {
	command, output string
	from, to        int // lines of the output
}

// consoles finds the commands in ```console blocks. A command goes on over the lines of its here-document.
func consoles(lines []string) []console {
	var out []console
	inside := false
	for i := 0; i < len(lines); i++ {
		switch line := lines[i]; {
		case strings.HasPrefix(line, "```"):
			inside = line == "```console"
		case inside && strings.HasPrefix(line, "$ "):
			c := console{command: line[2:]}
			if strings.HasSuffix(line, "<<EOF") {
				for i++; lines[i] != "EOF"; i++ {
					c.command += "\n" + lines[i]
				}
				c.command += "\nEOF"
			}
			c.from, c.to = i+1, i+1
			for c.to < len(lines) && !strings.HasPrefix(lines[c.to], "$ ") && !strings.HasPrefix(lines[c.to], "```") {
				c.to++
			}
			c.output = strings.Join(lines[c.from:c.to], "\n")
			out = append(out, c)
		}
	}
	return out
}

// TestPolicyDocument runs every command of docs/policy.md and compares what kubectl prints. With
// KUBEPACE_UPDATE_DOCS=true it writes that into the document instead.
func TestPolicyDocument(t *testing.T) {
	s := needService(t)
	root, err := lab.Root()
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(root, "docs", "policy.md")
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	kubeconfig, err := s.WriteKubeconfig()
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(string(content), "\n")
	commands := consoles(lines)
	if len(commands) < 20 {
		t.Fatalf("%d commands in %s", len(commands), file)
	}
	update := os.Getenv("KUBEPACE_UPDATE_DOCS") == "true"
	for i := range commands {
		c := &commands[i]
		got := s.until(t, kubeconfig, c, update)
		if diff := cmp.Diff(c.output, got); diff != "" && !update {
			t.Errorf("line %d: %s\n(-document +kubectl)\n%s", c.from, c.command, diff)
		}
		c.output = got
	}
	if !update {
		return
	}
	for i := len(commands) - 1; i >= 0; i-- {
		c := commands[i]
		var output []string
		if c.output != "" {
			output = strings.Split(c.output, "\n")
		}
		lines = append(lines[:c.from:c.from], append(output, lines[c.to:]...)...)
	}
	if err := os.WriteFile(file, []byte(strings.Join(lines, "\n")), 0o644); err != nil {
		t.Fatal(err)
	}
}

// until runs a command; one that only looks is given time, for policies reach pods within seconds.
func (s *service) until(t *testing.T, kubeconfig string, c *console, update bool) string {
	t.Helper()
	looks := strings.HasPrefix(c.command, "kubectl get ")
	if update && looks {
		time.Sleep(5 * time.Second)
	}
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(200 * time.Millisecond) {
		got := runConsole(t, kubeconfig, c.command)
		if got == c.output || !looks || update || time.Now().After(deadline) {
			if !looks {
				time.Sleep(time.Second) // what was set has to be known before it shows
			}
			return got
		}
	}
}

func runConsole(t *testing.T, kubeconfig, command string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "-c", command)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+kubeconfig, "PATH="+os.Getenv("KUBEBUILDER_ASSETS")+":"+os.Getenv("PATH"))
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) { // a refusal is what some of them show
		t.Fatalf("%s: %v", command, err)
	}
	return strings.TrimRight(string(out), "\n")
}
