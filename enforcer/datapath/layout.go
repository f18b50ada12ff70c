// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"

	"github.com/kubepace/kubepace/bpf"
)

// ownLayout is the layout of the compiled program.
var ownLayout = sync.OnceValues(func() (string, error) {
	spec, err := bpf.LoadEgress()
	if err != nil {
		return "", fmt.Errorf("read the egress program: %w", err)
	}
	return layoutOf(spec)
})

// layoutOf names the shape of a program's pinned maps: whatever changes a map's kind, size, key or value changes the
// name, so that a program never meets maps that it does not understand, and nobody has to remember a version.
func layoutOf(spec *ebpf.CollectionSpec) (string, error) {
	sum := sha256.New()
	for _, name := range mapNames() {
		m := spec.Maps[name]
		if m == nil {
			return "", fmt.Errorf("the egress program has no map %s", name)
		}
		describeMap(sum, m)
		if m.InnerMap != nil {
			describeMap(sum, m.InnerMap)
		}
	}
	return "layout-" + hex.EncodeToString(sum.Sum(nil))[:12], nil
}

func describeMap(w io.Writer, m *ebpf.MapSpec) {
	fmt.Fprintf(w, "map %s %s key %d value %d entries %d flags %d\n", m.Name, m.Type, m.KeySize, m.ValueSize, m.MaxEntries, m.Flags)
	describeType(w, m.Value)
}

// describeType writes what places a value's bytes: names, offsets and sizes.
func describeType(w io.Writer, t btf.Type) {
	if t == nil {
		return
	}
	t = btf.UnderlyingType(t)
	size, err := btf.Sizeof(t)
	fmt.Fprintf(w, "%T %d %v\n", t, size, err != nil)
	switch t := t.(type) {
	case *btf.Struct:
		for _, m := range t.Members {
			fmt.Fprintf(w, "%s at %d: ", m.Name, m.Offset)
			describeType(w, m.Type)
		}
	case *btf.Array:
		fmt.Fprintf(w, "%d of ", t.Nelems)
		describeType(w, t.Type)
	}
}

// copyFields copies what has the same name and size in both shapes of a struct, however it moved. The rest of to
// stays as it is. Spin locks are never copied: they belong to their map.
func copyFields(toType *btf.Struct, to []byte, fromType *btf.Struct, from []byte) {
	earlier := map[string]btf.Member{}
	for _, m := range fromType.Members {
		earlier[m.Name] = m
	}
	for _, m := range toType.Members {
		old, ok := earlier[m.Name]
		if !ok || m.BitfieldSize != 0 || old.BitfieldSize != 0 {
			continue
		}
		copyValue(m.Type, tail(to, m.Offset), old.Type, tail(from, old.Offset))
	}
}

func copyValue(toType btf.Type, to []byte, fromType btf.Type, from []byte) {
	toType, fromType = btf.UnderlyingType(toType), btf.UnderlyingType(fromType)
	if a, ok := toType.(*btf.Struct); ok {
		if b, ok := fromType.(*btf.Struct); ok && a.Name != "bpf_spin_lock" {
			copyFields(a, to, b, from)
		}
		return
	}
	size, err := btf.Sizeof(toType)
	earlier, err2 := btf.Sizeof(fromType)
	if err == nil && err2 == nil && size == earlier && len(to) >= size && len(from) >= size {
		copy(to[:size], from)
	}
}

// tail is what follows an offset; nothing where the data is shorter than its type says.
func tail(data []byte, at btf.Bits) []byte {
	offset := int(at.Bytes())
	if offset > len(data) {
		return nil
	}
	return data[offset:]
}
