// SPDX-License-Identifier: Apache-2.0

package qdisc

import (
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
)

const root = netlink.HANDLE_ROOT

func TestTree(t *testing.T) {
	good := fqOptions(exitBuckets)
	for name, test := range map[string]struct {
		entries  []entry
		describe string
		paced    bool
		foreign  string // kind
	}{
		"none":            {nil, "none", false, ""},
		"noqueue":         {[]entry{{Kind: "noqueue", Parent: root}}, "noqueue", false, ""},
		"pfifo_fast":      {[]entry{{Kind: "pfifo_fast", Parent: root}}, "pfifo_fast", false, ""},
		"typed fq_codel":  {[]entry{{Kind: "fq_codel", Handle: 0x10000, Parent: root}}, "fq_codel", false, ""},
		"plain fq":        {[]entry{{Kind: "fq", Parent: root}}, "fq", false, ""},
		"our fq":          {[]entry{{Kind: "fq", Handle: ourHandle, Parent: root, Options: good}}, "fq", true, ""},
		"fq for veths":    {[]entry{{Kind: "fq", Parent: root, Options: fqOptions(vethBuckets)}}, "fq", false, ""},
		"broken options":  {[]entry{{Kind: "fq", Parent: root, Options: []byte{1, 2, 3}}}, "fq", false, ""},
		"tbf":             {[]entry{{Kind: "tbf", Handle: 0x10000, Parent: root}}, "tbf", false, "tbf"},
		"htb and leaf":    {[]entry{{Kind: "htb", Handle: 0x10000, Parent: root}, {Kind: "fq", Parent: 0x10001}}, "htb", false, "htb"},
		"cake by default": {[]entry{{Kind: "cake", Parent: root}}, "cake", false, "cake"},
		"clsact beside":   {[]entry{{Kind: "clsact", Handle: 0xffff0000, Parent: netlink.HANDLE_INGRESS}, {Kind: "noqueue", Parent: root}}, "noqueue", false, ""},
		"mq by default":   {[]entry{{Kind: "mq", Parent: root}, {Kind: "fq_codel", Parent: 2}, {Kind: "fq_codel", Parent: 1}}, "mq(2×fq_codel)", false, ""},
		"mq with tbf":     {[]entry{{Kind: "mq", Handle: 0x10000, Parent: root}, {Kind: "tbf", Parent: 0x10002}, {Kind: "fq_codel", Parent: 0x10001}}, "mq(2×fq_codel,tbf)", false, "tbf"},
		"our mq":          {[]entry{{Kind: "mq", Handle: ourHandle, Parent: root}, {Kind: "fq", Parent: ourHandle | 1, Options: good}}, "mq(1×fq)", true, ""},
		"our mq, new queue": {[]entry{{Kind: "mq", Handle: ourHandle, Parent: root}, {Kind: "fq", Parent: ourHandle | 1, Options: good}, {Kind: "pfifo_fast", Parent: ourHandle | 2}},
			"mq(2×fq,pfifo_fast)", false, ""},
		"mq without leaves": {[]entry{{Kind: "mq", Handle: ourHandle, Parent: root}}, "mq", false, ""},
	} {
		t.Run(name, func(t *testing.T) {
			tree := newTree(7, test.entries)
			if got := tree.describe(); got != test.describe {
				t.Errorf("describe = %q; want %q", got, test.describe)
			}
			if got := tree.paced(exitBuckets); got != test.paced {
				t.Errorf("paced = %v; want %v", got, test.paced)
			}
			if got, ok := tree.foreign(); got.Kind != test.foreign || ok != (test.foreign != "") {
				t.Errorf("foreign = %v, %v; want %q", got, ok, test.foreign)
			}
		})
	}
}

func TestNewRootKeepsShape(t *testing.T) {
	for kind, want := range map[string]string{"": "fq", "noqueue": "fq", "fq_codel": "fq", "fq": "fq", "mq": "mq"} {
		got := tree{index: 7, root: entry{Kind: kind}}.newRoot(exitBuckets)
		if got.Kind != want || got.Handle != ourHandle || got.Parent != root || got.Index != 7 || (want == "mq") != (got.Options == nil) {
			t.Errorf("new root in place of %q: %+v; want %s", kind, got, want)
		}
	}
}

func TestNewLeavesRepairOnlyWhatIsNotOurs(t *testing.T) {
	leaves := newTree(7, []entry{
		{Kind: "mq", Handle: ourHandle, Parent: root},
		{Kind: "fq", Parent: ourHandle | 1, Options: fqOptions(exitBuckets)},
		{Kind: "pfifo_fast", Parent: ourHandle | 2},
	}).newLeaves(exitBuckets)
	if len(leaves) != 1 || leaves[0].Parent != ourHandle|2 || leaves[0].Kind != "fq" || leaves[0].Index != 7 {
		t.Errorf("leaves to set: %+v; want fq at the second queue alone", leaves)
	}
}

func TestFqOptions(t *testing.T) {
	attrs, err := nl.ParseRouteAttr(fqOptions(exitBuckets))
	if err != nil {
		t.Fatal(err)
	}
	kinds := map[uint16]bool{}
	for _, a := range attrs {
		kinds[a.Attr.Type] = true
	}
	if !kinds[nl.TCA_FQ_ORPHAN_MASK] || kinds[nl.TCA_FQ_HORIZON] || kinds[nl.TCA_FQ_RATE_ENABLE] {
		t.Errorf("attributes %v: want orphan_mask, and neither horizon nor rate_enable", kinds)
	}
}

func TestCompare(t *testing.T) {
	before := record{Root: entry{Kind: "fq", Handle: 0x10000, Parent: root, Options: []byte{1}}}
	for name, test := range map[string]struct {
		now  entry
		same bool
	}{
		"same":    {before.Root, true},
		"kind":    {entry{Kind: "tbf", Handle: 0x10000, Parent: root, Options: []byte{1}}, false},
		"handle":  {entry{Kind: "fq", Handle: 0x20000, Parent: root, Options: []byte{1}}, false},
		"options": {entry{Kind: "fq", Handle: 0x10000, Parent: root, Options: []byte{2}}, false},
		"none":    {entry{}, false},
	} {
		if err := before.compare(tree{root: test.now}); (err == nil) != test.same {
			t.Errorf("%s: %v; want same %v", name, err, test.same)
		}
	}
}
