// SPDX-License-Identifier: Apache-2.0

package restamp

import (
	"slices"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/kubepace/kubepace/webhook/policy"
)

// state is what one leader remembers so as not to say the same thing twice. No limit depends on it.
type state struct {
	mu         sync.Mutex
	namespaces map[string]*namespaceState
	told       map[key]telling
	attempts   map[key]int
}

// namespaceState is the policy that was acted on last, and what has been done since the last event.
type namespaceState struct {
	digest    string
	problems  []string
	done      tally
	due       time.Time // when the event about done is sent
	uncounted uncounted
}

// telling is what a pod's last event said about pods that keep what they have.
type telling struct {
	uid    types.UID
	action action
	digest string
}

func newState() *state {
	return &state{namespaces: map[string]*namespaceState{}, told: map[key]telling{}, attempts: map[key]int{}}
}

func (s *state) of(namespace string) *namespaceState {
	n, ok := s.namespaces[namespace]
	if !ok {
		n = &namespaceState{done: tally{}}
		s.namespaces[namespace] = n
	}
	return n
}

// observe notes the policy and says whether it is another one than before (also at first sight, then known is false),
// and which problems are new.
func (s *state) observe(namespace string, p policy.Policy) (changed, known bool, problems []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.of(namespace)
	now := digest(p)
	changed, known = n.digest != now, n.digest != ""
	for _, problem := range p.Problems {
		if !slices.Contains(n.problems, problem) {
			problems = append(problems, problem)
		}
	}
	n.digest, n.problems = now, p.Problems
	return changed, known, problems
}

// count adds an outcome, and says whether an event has to be planned for it.
func (s *state) count(namespace, outcome string) (plan bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.of(namespace)
	n.done[outcome]++
	if plan = n.due.IsZero(); plan {
		n.due = time.Now().Add(gather)
	}
	return plan
}

// take returns what was done, once it is due.
func (s *state) take(namespace string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.of(namespace)
	if n.due.IsZero() || time.Now().Before(n.due) {
		return ""
	}
	text := n.done.String()
	n.done, n.due = tally{}, time.Time{}
	return text
}

// tell reports whether this is news about the pod.
func (s *state) tell(pod key, t telling) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.told[pod] == t {
		return false
	}
	s.told[pod] = t
	return true
}

// again says when to try a pod again: later each time.
func (s *state) again(pod key) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.attempts[pod]++
	return min(longest, shortest<<min(s.attempts[pod]-1, 16))
}

func (s *state) forgetPod(pod key) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.attempts, pod)
	delete(s.told, pod)
}

// uncountedChanged notes which pods no quota counts, and says whether there are more of them than before.
func (s *state) uncountedChanged(namespace string, now uncounted) (more bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.of(namespace)
	more = now.pods > n.uncounted.pods || now.unlimited > n.uncounted.unlimited
	n.uncounted = now
	return more
}

func (s *state) forgetNamespace(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.namespaces, name)
}
