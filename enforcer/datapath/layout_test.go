// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"

	"github.com/kubepace/kubepace/bpf"
)

// altered is the compiled program on maps of another layout, whose values change makes of the compiled ones.
func altered(change func(*btf.Struct)) func() (*ebpf.CollectionSpec, error) {
	return func() (*ebpf.CollectionSpec, error) {
		spec, err := bpf.LoadEgress()
		if err != nil {
			return nil, err
		}
		for _, name := range []string{bpf.EgressMapKubepacePods, bpf.EgressMapKubepaceDevices} {
			value, ok := btf.Copy(spec.Maps[name].Value).(*btf.Struct)
			if !ok {
				return nil, errors.New("the values are no struct")
			}
			change(value)
			spec.Maps[name].Value, spec.Maps[name].ValueSize = value, value.Size
		}
		return spec, nil
	}
}

var (
	// renamed differs by a counter's name: code and program understand both.
	renamed = altered(func(value *btf.Struct) {
		for i := range value.Members {
			if value.Members[i].Name == "unstamped" {
				value.Members[i].Name = "something_else"
			}
		}
	})
	// grown has a field more.
	grown = altered(func(value *btf.Struct) {
		value.Members = append(value.Members, btf.Member{
			Name: "added", Type: &btf.Int{Name: "__u64", Size: 8}, Offset: btf.Bits(value.Size * 8),
		})
		value.Size += 8
	})
)

func TestLayoutNamesTheShape(t *testing.T) {
	name := func(change func(*ebpf.CollectionSpec)) string {
		spec, err := bpf.LoadEgress()
		if err != nil {
			t.Fatal(err)
		}
		change(spec)
		layout, err := layoutOf(spec)
		if err != nil {
			t.Fatal(err)
		}
		return layout
	}
	pods := func(s *ebpf.CollectionSpec) *ebpf.MapSpec { return s.Maps[bpf.EgressMapKubepacePods] }
	value := func(s *ebpf.CollectionSpec) *btf.Struct {
		v := btf.Copy(pods(s).Value).(*btf.Struct)
		pods(s).Value = v
		return v
	}
	own := name(func(*ebpf.CollectionSpec) {})
	if again := name(func(*ebpf.CollectionSpec) {}); again != own || !strings.HasPrefix(own, "layout-") {
		t.Errorf("layout %q, then %q", own, again)
	}
	if layout, err := ownLayout(); err != nil || layout != own {
		t.Errorf("ownLayout = %q, %v, want %q", layout, err, own)
	}
	seen := map[string]string{own: "unchanged"}
	for what, change := range map[string]func(*ebpf.CollectionSpec){
		"a field renamed":      func(s *ebpf.CollectionSpec) { value(s).Members[3].Name = "else" },
		"a field moved":        func(s *ebpf.CollectionSpec) { value(s).Members[3].Offset += 8 },
		"another type":         func(s *ebpf.CollectionSpec) { value(s).Members[3].Type = &btf.Int{Name: "__u32", Size: 4} },
		"more entries":         func(s *ebpf.CollectionSpec) { pods(s).MaxEntries++ },
		"another kind":         func(s *ebpf.CollectionSpec) { pods(s).Type = ebpf.LRUHash },
		"larger flow tables":   func(s *ebpf.CollectionSpec) { s.Maps[bpf.EgressMapKubepaceFlows].InnerMap.MaxEntries++ },
		"a longer value":       func(s *ebpf.CollectionSpec) { s.Maps[bpf.EgressMapKubepaceIdentities].ValueSize++ },
		"another flag of maps": func(s *ebpf.CollectionSpec) { pods(s).Flags ^= 1 },
	} {
		layout := name(change)
		if other, ok := seen[layout]; ok {
			t.Errorf("%s: the same name as %s", what, other)
		}
		seen[layout] = what
	}
}

// field is a member of so many bytes at a byte offset.
func field(name string, offset, size uint32) btf.Member {
	return btf.Member{Name: name, Offset: btf.Bits(offset * 8), Type: &btf.Int{Name: name + "_t", Size: size}}
}

func TestCopyFields(t *testing.T) {
	lock := btf.Member{Name: "lock", Type: &btf.Struct{Name: "bpf_spin_lock", Size: 4, Members: []btf.Member{field("val", 0, 4)}}}
	inner := func(fields ...btf.Member) *btf.Struct { return &btf.Struct{Name: "inner", Size: 4, Members: fields} }
	from := &btf.Struct{Name: "s", Size: 16, Members: []btf.Member{
		lock, field("moved", 4, 2), field("widened", 6, 1), field("gone", 7, 1),
		{Name: "nested", Offset: 8 * 8, Type: inner(field("a", 0, 1), field("b", 1, 1))},
		{Name: "list", Offset: 12 * 8, Type: &btf.Array{Nelems: 4, Type: &btf.Int{Name: "char", Size: 1}}},
	}}
	to := &btf.Struct{Name: "s", Size: 20, Members: []btf.Member{
		lock,
		{Name: "nested", Offset: 4 * 8, Type: &btf.Typedef{Name: "n", Type: inner(field("b", 0, 1), field("a", 1, 1))}},
		field("widened", 8, 2), field("moved", 10, 2), field("added", 12, 4),
		{Name: "list", Offset: 16 * 8, Type: &btf.Array{Nelems: 4, Type: &btf.Int{Name: "char", Size: 1}}},
	}}
	old := []byte{1, 1, 1, 1, 2, 3, 4, 5, 6, 7, 0, 0, 8, 9, 10, 11}
	got := make([]byte, 20)
	copyFields(to, got, from, old)
	want := []byte{0, 0, 0, 0, 7, 6, 0, 0, 0, 0, 2, 3, 0, 0, 0, 0, 8, 9, 10, 11}
	if !bytes.Equal(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
	// Data that is shorter than its type says is no reason to crash.
	copyFields(to, got[:3], from, old[:5])
	copyFields(to, nil, from, nil)
}
