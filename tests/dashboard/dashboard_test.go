// SPDX-License-Identifier: Apache-2.0

package dashboard

import (
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	crmetrics "sigs.k8s.io/controller-runtime/pkg/metrics"
	_ "sigs.k8s.io/controller-runtime/pkg/webhook" // registers its own metrics, as in kubepace-webhook

	"github.com/kubepace/kubepace/bandwidth"
	"github.com/kubepace/kubepace/certs"
	"github.com/kubepace/kubepace/enforcer"
	"github.com/kubepace/kubepace/enforcer/datapath"
	"github.com/kubepace/kubepace/enforcer/metrics"
	"github.com/kubepace/kubepace/enforcer/qdisc"
	"github.com/kubepace/kubepace/webhook"
	"github.com/kubepace/kubepace/webhook/restamp"
)

// unused are metrics that the dashboard does without, and why.
var unused = map[string]string{
	"kubepace_enforcer_pod_enforced":           "for alerts; the table of pods that are not enforced says which and why",
	"kubepace_webhook_certificate_loads_total": "for whoever debugs a rotation",
}

// target are labels that Prometheus adds.
var target = []string{"instance", "job"}

// known are the labels of every metric of both programs.
func known(t *testing.T) (labels map[string][]string, gathered map[string]*dto.MetricFamily) {
	t.Helper()
	ours := prometheus.NewRegistry()
	ours.MustRegister(enforcerMetrics())
	_, err := webhook.NewMetrics(ours)
	must(t, err)
	_, err = restamp.NewMetrics(ours)
	must(t, err)
	_, err = certs.NewMetrics(ours)
	must(t, err)
	labels, gathered = map[string][]string{}, map[string]*dto.MetricFamily{}
	for _, c := range []prometheus.Collector{ours, crmetrics.Registry.(prometheus.Collector)} {
		for _, d := range describe(c) {
			labels[d.name] = d.labels
		}
	}
	families, err := ours.Gather()
	must(t, err)
	for _, f := range families {
		gathered[f.GetName()] = f
	}
	return labels, gathered
}

// enforcerMetrics are the agent's, of a node on which every series exists.
func enforcerMetrics() prometheus.Collector {
	pod := func(name string) datapath.Pod { return datapath.Pod{Namespace: "team", Name: name, UID: name} }
	state := func(name string) datapath.State {
		return datapath.State{Limit: datapath.Limit{Pod: pod(name), Rate: bandwidth.MustParse("1M"), Devices: []datapath.Device{{Index: 1, Hook: datapath.HookTCX}}}}
	}
	return metrics.New(metrics.Options{
		States: func() ([]datapath.State, error) { return []datapath.State{state("a"), state("b")}, nil },
		Status: func() enforcer.Status {
			return enforcer.Status{
				Exits: []qdisc.Device{{Paced: true}, {}},
				Pods:  []enforcer.Verdict{{Pod: pod("lost"), Code: enforcer.CodeHostNetwork}},
			}
		},
		Repairs: func() map[datapath.Cause]uint64 { return nil },
		Pods:    2,
	})
}

type described struct {
	name   string
	labels []string
}

var (
	descName   = regexp.MustCompile(`fqName: "([^"]+)"`)
	descLabels = regexp.MustCompile(`variableLabels: \{([^}]*)\}`)
)

// describe reads what a Desc shows of itself; there is no other way in.
func describe(c prometheus.Collector) []described {
	ch := make(chan *prometheus.Desc)
	go func() {
		c.Describe(ch)
		close(ch)
	}()
	var list []described
	for d := range ch {
		one := described{name: descName.FindStringSubmatch(d.String())[1]}
		if labels := descLabels.FindStringSubmatch(d.String())[1]; labels != "" {
			one.labels = strings.Split(labels, ",")
		}
		list = append(list, one)
	}
	return list
}

// panel of the dashboard, as far as it is of interest here.
type panel struct {
	Title   string
	Type    string
	ID      int
	GridPos struct{ X, Y, W, H int }
	Targets []struct{ Expr, LegendFormat string }
}

func panels(t *testing.T) []panel {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(root, "manifests", "dashboard", "kubepace.json"))
	must(t, err)
	var dashboard struct {
		UID        string
		Panels     []panel
		Templating struct {
			List []struct {
				Name  string
				Query any
			}
		}
	}
	must(t, json.Unmarshal(data, &dashboard))
	if dashboard.UID == "" || len(dashboard.Panels) < 10 {
		t.Fatalf("no dashboard: %+v", dashboard)
	}
	// A variable asks for metrics as well.
	for _, v := range dashboard.Templating.List {
		if q, ok := v.Query.(map[string]any); ok {
			parts := regexp.MustCompile(`^label_values\(([^,]+), (\w+)\)$`).FindStringSubmatch(q["query"].(string))
			if parts == nil {
				t.Fatalf("variable %s: query %v is not understood", v.Name, q)
			}
			p := panel{Title: "variable " + v.Name}
			p.Targets = append(p.Targets, struct{ Expr, LegendFormat string }{"max by (" + parts[2] + ") (" + parts[1] + ")", ""})
			dashboard.Panels = append(dashboard.Panels, p)
		}
	}
	return dashboard.Panels
}

const root = "../.."

func TestDashboardAsksForWhatExists(t *testing.T) {
	labels, gathered := known(t)
	used := map[string]bool{}
	for _, p := range panels(t) {
		for _, target := range p.Targets {
			q, err := parse(target.Expr)
			if err != nil {
				t.Errorf("%s: %v", p.Title, err)
				continue
			}
			for _, problem := range check(q, target.LegendFormat, labels, gathered, used) {
				t.Errorf("%s: %s: %s", p.Title, target.Expr, problem)
			}
		}
	}
	for name := range labels {
		switch {
		case !strings.HasPrefix(name, "kubepace_"):
		case used[name] && unused[name] != "":
			t.Errorf("%s is used, and in the list of those that are not", name)
		case !used[name] && unused[name] == "":
			t.Errorf("%s is on no panel: add it, or say in unused why not", name)
		}
	}
	for name := range unused {
		if labels[name] == nil && gathered[name] == nil {
			t.Errorf("%s does not exist, and is in the list of those that are not used", name)
		}
	}
}

var legendLabel = regexp.MustCompile(`\{\{\s*(\w+)\s*\}\}`)

// check returns what is wrong with a query, and notes which metrics it uses.
func check(q query, legend string, labels map[string][]string, gathered map[string]*dto.MetricFamily, used map[string]bool) []string {
	var problems []string
	all := slices.Clone(target)
	for _, s := range q.metrics {
		name, suffix := base(s.name, labels)
		have, exists := labels[name]
		if !exists {
			problems = append(problems, "no metric "+s.name)
			continue
		}
		family := gathered[name]
		if histogram := family != nil && family.GetType() == dto.MetricType_HISTOGRAM; suffix != "" && family != nil && !histogram {
			problems = append(problems, name+" is no histogram")
		} else if suffix == "" && (histogram || strings.HasPrefix(name, "controller_runtime_") && strings.HasSuffix(name, "_seconds")) {
			problems = append(problems, name+" is a histogram: _bucket, _sum or _count is missing")
		}
		used[name] = true
		all = append(all, have...)
		if suffix == "_bucket" {
			all = append(all, "le")
		}
		for label, value := range s.labels {
			if !slices.Contains(have, label) {
				problems = append(problems, s.name+" has no label "+label)
			} else if family != nil && strings.HasPrefix(value, "=") && !strings.HasPrefix(value, "=~") && !hasValue(family, label, value[1:]) {
				problems = append(problems, s.name+" is never "+label+value)
			}
		}
	}
	for _, label := range q.grouping {
		if !slices.Contains(all, label) {
			problems = append(problems, "nothing has label "+label)
		}
	}
	shown := all
	if len(q.grouping) > 0 {
		shown = q.grouping
	}
	for _, m := range legendLabel.FindAllStringSubmatch(legend, -1) {
		if !slices.Contains(shown, m[1]) {
			problems = append(problems, "the legend's "+m[1]+" is not in the result")
		}
	}
	return problems
}

// base takes a histogram's suffix off.
func base(name string, labels map[string][]string) (string, string) {
	for _, suffix := range []string{"_bucket", "_sum", "_count"} {
		if short, ok := strings.CutSuffix(name, suffix); ok {
			if _, exists := labels[short]; exists {
				return short, suffix
			}
		}
	}
	return name, ""
}

func hasValue(f *dto.MetricFamily, label, value string) bool {
	return slices.ContainsFunc(f.Metric, func(m *dto.Metric) bool {
		return slices.ContainsFunc(m.Label, func(l *dto.LabelPair) bool { return l.GetName() == label && l.GetValue() == value })
	})
}

// The check itself finds what is wrong.
func TestCheckFinds(t *testing.T) {
	labels, gathered := known(t)
	for expr, want := range map[string]string{
		`kubepace_enforcer_bits_total`:                                           "no metric kubepace_enforcer_bits_total",
		`sum by (node) (kubepace_enforcer_pods)`:                                 "nothing has label node",
		`kubepace_enforcer_pods{why="x"}`:                                        "kubepace_enforcer_pods has no label why",
		`kubepace_enforcer_pods{enforced="no"}`:                                  "kubepace_enforcer_pods is never enforced=no",
		`kubepace_enforcer_pass_duration_seconds`:                                "kubepace_enforcer_pass_duration_seconds is a histogram: _bucket, _sum or _count is missing",
		`kubepace_enforcer_problems_bucket`:                                      "kubepace_enforcer_problems is no histogram",
		`last_over_time(kubepace_enforcer_problems[1m])`:                         "no metric last_over_time",
		`sum by (le) (rate(kubepace_enforcer_pass_duration_seconds_bucket[5m]))`: "the legend's pod is not in the result",
	} {
		q, err := parse(expr)
		must(t, err)
		if got := strings.Join(check(q, "{{pod}}", labels, gathered, map[string]bool{}), "; "); !strings.Contains(got, want) {
			t.Errorf("%s: %q; want %q", expr, got, want)
		}
	}
}

// Panels have a place of their own and something to show.
func TestPanels(t *testing.T) {
	ids, taken := map[int]string{}, map[[2]int]string{}
	for _, p := range panels(t) {
		if strings.HasPrefix(p.Title, "variable ") {
			continue
		}
		if ids[p.ID] != "" {
			t.Errorf("%s and %s have one id", p.Title, ids[p.ID])
		}
		ids[p.ID] = p.Title
		if p.Type != "row" && len(p.Targets) == 0 {
			t.Errorf("%s shows nothing", p.Title)
		}
		g := p.GridPos
		if g.W < 1 || g.H < 1 || g.X+g.W > 24 {
			t.Errorf("%s is at %+v, beyond the grid's 24 columns", p.Title, g)
		}
		for x := g.X; x < g.X+g.W; x++ {
			for y := g.Y; y < g.Y+g.H; y++ {
				if other := taken[[2]int{x, y}]; other != "" {
					t.Fatalf("%s lies on %s", p.Title, other)
				}
				taken[[2]int{x, y}] = p.Title
			}
		}
	}
}

// TestEveryMetricIsKnown: whoever makes metrics elsewhere adds them to known.
func TestEveryMetricIsKnown(t *testing.T) {
	makers := []string{"certs/metrics.go", "enforcer/metrics/descs.go", "enforcer/metrics/metrics.go", "webhook/metrics.go", "webhook/restamp/metrics.go"}
	makes := regexp.MustCompile(`(prometheus|promauto)\.(New(Desc|Counter|Gauge|Histogram|Summary|Untyped)|MustNewConst)`)
	var found []string
	for _, top := range []string{"bandwidth", "certs", "cmd", "enforcer", "webhook"} {
		must(t, filepath.WalkDir(filepath.Join(root, top), func(path string, _ fs.DirEntry, err error) error {
			if err != nil || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			data, err := os.ReadFile(path)
			if err == nil && makes.Match(data) {
				name, _ := filepath.Rel(root, path)
				found = append(found, filepath.ToSlash(name))
			}
			return err
		}))
	}
	if slices.Sort(found); !slices.Equal(found, makers) {
		t.Errorf("metrics are made in %v; want %v: see known", found, makers)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
