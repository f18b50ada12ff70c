// SPDX-License-Identifier: Apache-2.0

package qdisc

import (
	"errors"
	"os"
	"path/filepath"

	"github.com/kubepace/kubepace/enforcer/internal/rundir"
)

// recordName is the file, in the run folder, that tells what was on each device before us.
const recordName = "qdiscs.json"

// record is what was on one device.
type record struct {
	Index int     `json:"ifindex"`
	Name  string  `json:"name"` // for people; the ifindex counts
	Root  entry   `json:"root"`
	Below []entry `json:"below,omitempty"`
}

func newRecord(name string, t tree) record {
	return record{Index: t.index, Name: name, Root: t.root, Below: t.below}
}

// madeByKernel reports whether nobody had set anything: deleting ours then brings it back.
func (r record) madeByKernel() bool { return r.Root.Handle == 0 }

func loadRecords(dir string) (map[int]record, error) {
	var list []record
	err := rundir.ReadJSON(filepath.Join(dir, recordName), &list)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	records := make(map[int]record, len(list))
	for _, r := range list {
		records[r.Index] = r
	}
	return records, nil
}

func saveRecords(dir string, records map[int]record) error {
	set := make(map[int]bool, len(records))
	for index := range records {
		set[index] = true
	}
	list := make([]record, 0, len(records))
	for _, index := range sorted(set) {
		list = append(list, records[index])
	}
	return rundir.WriteJSON(filepath.Join(dir, recordName), list)
}
