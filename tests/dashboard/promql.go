// SPDX-License-Identifier: Apache-2.0

// Package dashboard holds manifests/dashboard against the metrics of both programs: what the dashboard asks for exists,
// and what exists is asked for.
package dashboard

import (
	"fmt"
	"regexp"
	"strings"
)

// query is what an expression of PromQL names.
type query struct {
	metrics  []selector
	grouping []string // labels of by, without, on, ignoring, group_left and group_right
}

// selector is one metric with the labels that it is selected by.
type selector struct {
	name   string
	labels map[string]string // label: value as written, with the operator before it
}

var (
	token = regexp.MustCompile(`^(?:\s+|#[^\n]*|"(?:[^"\\]|\\.)*"|[0-9]+(?:\.[0-9]+)?(?:e[+-]?[0-9]+)?(?:ms|[smhdwy])?|[a-zA-Z_:][a-zA-Z0-9_:]*|\$[a-zA-Z_]+|=~|!~|!=|==|>=|<=|[-+*/%^=<>(){},\[\]@:])`)

	clauses   = words("by without on ignoring group_left group_right")
	operators = words("and or unless bool offset inf nan")
	// functions are those that the dashboard uses: a name that is none of these, and no metric, is a mistake.
	functions = words("sum count min max avg topk rate increase histogram_quantile vector time")
)

func words(list string) map[string]bool {
	set := map[string]bool{}
	for _, w := range strings.Fields(list) {
		set[w] = true
	}
	return set
}

// parse finds the names in an expression. It is no grammar: it knows where in PromQL names of metrics and of labels
// stand, and refuses what it does not know.
func parse(expr string) (query, error) {
	tokens, err := split(expr)
	if err != nil {
		return query{}, err
	}
	var q query
	for i := 0; i < len(tokens); i++ {
		t := tokens[i]
		switch {
		case clauses[t]:
			end, labels := list(tokens, i+1)
			q.grouping, i = append(q.grouping, labels...), end
		case functions[t]:
			if i+1 >= len(tokens) || (tokens[i+1] != "(" && !clauses[tokens[i+1]]) {
				return query{}, fmt.Errorf("%s: function %s without arguments", expr, t)
			}
		case t == "{":
			return query{}, fmt.Errorf("%s: a selector without a metric", expr)
		case t == "[":
			for i < len(tokens) && tokens[i] != "]" {
				i++
			}
		case isName(t) && !operators[t]:
			s := selector{name: t, labels: map[string]string{}}
			if i+1 < len(tokens) && tokens[i+1] == "{" {
				if i, err = s.match(expr, tokens, i+2); err != nil {
					return query{}, err
				}
			}
			q.metrics = append(q.metrics, s)
		}
	}
	if len(q.metrics) == 0 {
		return query{}, fmt.Errorf("%s: names no metric", expr)
	}
	return q, nil
}

func split(expr string) ([]string, error) {
	var tokens []string
	for rest := expr; rest != ""; {
		t := token.FindString(rest)
		if t == "" {
			return nil, fmt.Errorf("%s: not understood from %q on", expr, rest)
		}
		if rest = rest[len(t):]; strings.TrimSpace(t) != "" && t[0] != '#' {
			tokens = append(tokens, t)
		}
	}
	depth := 0
	for _, t := range tokens {
		depth += strings.Count("({[", t) - strings.Count(")}]", t)
		if depth < 0 {
			break
		}
	}
	if depth != 0 {
		return nil, fmt.Errorf("%s: brackets do not match", expr)
	}
	return tokens, nil
}

func isName(t string) bool { return regexp.MustCompile(`^[a-zA-Z_:]`).MatchString(t) }

// list reads "(a, b)" and returns where it ends.
func list(tokens []string, at int) (end int, names []string) {
	if at >= len(tokens) || tokens[at] != "(" { // group_left needs none
		return at - 1, nil
	}
	for end = at + 1; end < len(tokens) && tokens[end] != ")"; end++ {
		if tokens[end] != "," {
			names = append(names, tokens[end])
		}
	}
	return end, names
}

// match reads matchers up to the closing brace and returns where that is.
func (s *selector) match(expr string, tokens []string, at int) (end int, err error) {
	for ; at < len(tokens) && tokens[at] != "}"; at++ {
		if tokens[at] == "," {
			continue
		}
		if at+2 >= len(tokens) || !isName(tokens[at]) || !strings.HasPrefix(tokens[at+2], `"`) {
			return 0, fmt.Errorf("%s: matchers of %s are not understood", expr, s.name)
		}
		s.labels[tokens[at]] = tokens[at+1] + strings.Trim(tokens[at+2], `"`)
		at += 2
	}
	return at, nil
}
