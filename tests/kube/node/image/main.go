// SPDX-License-Identifier: Apache-2.0

// Command image writes a container image as an archive for `ctr images import`, without a container engine: one layer with the
// named files, each from this machine.
//
//	image -ref kubepace.test/x:1 -out x.tar [-user 65532] [-entrypoint /x] FILE=PATH-IN-THE-IMAGE...
package main

import (
	"archive/tar"
	"bytes"
	"flag"
	"fmt"
	"io"
	"os"
	"path"
	"runtime"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

type options struct {
	ref, out, user, entrypoint string
	files                      []string // FILE=PATH
}

func main() {
	var o options
	flag.StringVar(&o.ref, "ref", "", "`name` of the image, with its tag")
	flag.StringVar(&o.out, "out", "", "`archive` to write")
	flag.StringVar(&o.user, "user", "", "`uid` that it runs as, root if empty")
	flag.StringVar(&o.entrypoint, "entrypoint", "", "`path` of the program that it runs")
	flag.Parse()
	o.files = flag.Args()
	if err := write(o); err != nil {
		fmt.Fprintln(os.Stderr, "image:", err)
		os.Exit(1)
	}
}

// write makes the image. Its bytes depend on the files' content alone.
func write(o options) error {
	ref, err := name.NewTag(o.ref, name.StrictValidation)
	if err != nil {
		return fmt.Errorf("name of the image: %w", err)
	}
	content, err := layer(o.files)
	if err != nil {
		return err
	}
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(content)), nil })
	if err != nil {
		return fmt.Errorf("make layer: %w", err)
	}
	image, err := mutate.AppendLayers(empty.Image, l)
	if err != nil {
		return fmt.Errorf("make image: %w", err)
	}
	file, err := image.ConfigFile()
	if err != nil {
		return fmt.Errorf("make image: %w", err)
	}
	file = file.DeepCopy()
	file.OS, file.Architecture = "linux", runtime.GOARCH
	file.Config = v1.Config{User: o.user, Env: []string{"PATH=/usr/bin:/bin"}}
	if o.entrypoint != "" {
		file.Config.Entrypoint = []string{o.entrypoint}
	}
	if image, err = mutate.ConfigFile(image, file); err != nil {
		return fmt.Errorf("make image: %w", err)
	}
	if err := tarball.WriteToFile(o.out, ref, image); err != nil {
		return fmt.Errorf("write %s: %w", o.out, err)
	}
	return nil
}

// layer is a tar archive of the files and the folders above them, and of /tmp for everybody.
func layer(files []string) ([]byte, error) {
	var out bytes.Buffer
	archive := tar.NewWriter(&out)
	folders := []string{"."}
	if err := archive.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: "tmp/", Mode: 0o1777}); err != nil {
		return nil, fmt.Errorf("write layer: %w", err)
	}
	for _, pair := range files {
		from, to, ok := strings.Cut(pair, "=")
		if !ok || !path.IsAbs(to) {
			return nil, fmt.Errorf("%q: want FILE=/PATH/IN/THE/IMAGE", pair)
		}
		to = strings.TrimPrefix(path.Clean(to), "/")
		for _, dir := range above(to) {
			if slices.Contains(folders, dir) {
				continue
			}
			folders = append(folders, dir)
			if err := archive.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir + "/", Mode: 0o755}); err != nil {
				return nil, fmt.Errorf("write layer: %w", err)
			}
		}
		if err := addFile(archive, from, to); err != nil {
			return nil, err
		}
	}
	if err := archive.Close(); err != nil {
		return nil, fmt.Errorf("write layer: %w", err)
	}
	return out.Bytes(), nil
}

// above lists the folders that file is in, the outermost first.
func above(file string) []string {
	var dirs []string
	for dir := path.Dir(file); dir != "."; dir = path.Dir(dir) {
		dirs = append(dirs, dir)
	}
	slices.Reverse(dirs)
	return dirs
}

func addFile(archive *tar.Writer, from, to string) error {
	content, err := os.ReadFile(from)
	if err != nil {
		return fmt.Errorf("read file: %w", err)
	}
	if err := archive.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: to, Mode: 0o755, Size: int64(len(content))}); err != nil {
		return fmt.Errorf("write layer: %w", err)
	}
	if _, err := archive.Write(content); err != nil {
		return fmt.Errorf("write layer: %w", err)
	}
	return nil
}
