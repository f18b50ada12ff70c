// SPDX-License-Identifier: Apache-2.0

package pods

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/uuid"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"
)

// maxManifest bounds one file: etcd takes no object above 1.5 MiB, and a file may hold several.
const maxManifest = 16 << 20

// uidSpace is the name space of the UIDs that are derived from names (RFC 9562, version 5).
var uidSpace = uuid.MustParse("b3ba1f5c-6f5e-4d0e-9f0c-6b7562657061")

// deriveUID gives a pod without a UID one that is the same after every restart and for every file that holds it.
func deriveUID(namespace, name string) types.UID {
	return types.UID(uuid.NewSHA1(uidSpace, []byte(namespace+"/"+name)).String())
}

// isManifest tells the files of a folder that are read. Names with a leading dot are what editors and atomic writers
// (a mounted ConfigMap's ..data) work with.
func isManifest(name string) bool {
	if strings.HasPrefix(name, ".") {
		return false
	}
	switch filepath.Ext(name) {
	case ".yaml", ".yml", ".json":
		return true
	}
	return false
}

// readManifest reads all pods of one file. An error names the file, the document where there are several, and the
// field; the file then counts as unread as a whole.
func readManifest(path string) ([]Pod, error) {
	data, err := readBounded(path)
	if err != nil {
		return nil, fmt.Errorf("read manifest: %w", err)
	}
	pods, err := decodeManifest(data)
	if err != nil {
		return nil, fmt.Errorf("read manifest %s: %w", path, err)
	}
	return pods, nil
}

func readBounded(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil {
		return nil, err
	} else if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", path)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxManifest+1))
	if err == nil && len(data) > maxManifest {
		err = fmt.Errorf("%s is larger than %d bytes", path, maxManifest)
	}
	return data, err
}

func decodeManifest(data []byte) ([]Pod, error) {
	var docs [][]byte
	reader := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(data)))
	for {
		doc, err := reader.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		if hasContent(doc) {
			docs = append(docs, doc)
		}
	}
	// An empty file is what a writer leaves in the middle of its work; a pod is removed by removing its document or
	// its file.
	if len(docs) == 0 {
		return nil, errors.New("holds no Pod")
	}
	var list []Pod
	for i, doc := range docs {
		pod, err := decodePod(doc)
		if err != nil && len(docs) > 1 {
			err = fmt.Errorf("document %d: %w", i+1, err)
		}
		if err != nil {
			return nil, err
		}
		list = append(list, pod)
	}
	return list, nil
}

// hasContent tells a document from comments and blank lines.
func hasContent(doc []byte) bool {
	for line := range bytes.Lines(doc) {
		if line = bytes.TrimSpace(line); len(line) > 0 && line[0] != '#' && !bytes.Equal(line, []byte("---")) {
			return true
		}
	}
	return false
}

func decodePod(doc []byte) (Pod, error) {
	var pod corev1.Pod
	// Not strict: a manifest written for a newer Kubernetes may hold fields that this one does not know.
	if err := yaml.Unmarshal(doc, &pod); err != nil {
		return Pod{}, err
	}
	if pod.Kind != "Pod" || pod.APIVersion != "v1" {
		return Pod{}, &FieldError{"kind", fmt.Errorf("%q of apiVersion %q is not a Pod of v1", clip(pod.Kind), clip(pod.APIVersion))}
	}
	if pod.Name == "" {
		return Pod{}, &FieldError{"metadata.name", errors.New("is missing")}
	}
	if pod.Namespace == "" {
		pod.Namespace = "default"
	}
	// No API server has looked at these names, and they are printed on terminals.
	if problems := validation.IsDNS1123Subdomain(pod.Name); len(problems) > 0 {
		return Pod{}, &FieldError{"metadata.name", fmt.Errorf("%q: %s", clip(pod.Name), problems[0])}
	}
	if problems := validation.IsDNS1123Label(pod.Namespace); len(problems) > 0 {
		return Pod{}, &FieldError{"metadata.namespace", fmt.Errorf("%q: %s", clip(pod.Namespace), problems[0])}
	}
	if pod.UID == "" {
		pod.UID = deriveUID(pod.Namespace, pod.Name)
	}
	return fromObject(&pod, OriginManifests)
}
