// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"crypto/tls"
	_ "embed"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	certutil "k8s.io/client-go/util/cert"
)

//go:embed floor.yaml
var floorManifests []byte

// answerCommand makes this program the floor's process; its arguments are files of certificate and key.
const answerCommand = "answer"

// floor is a process of webhooks that do nothing but answer. What they add is what the API server and this machine take for
// asking a webhook at all.
type floor struct {
	cert, key string // files
	bundle    string // caBundle
	cmd       *exec.Cmd
	url       string // while it runs
}

func newFloor(dir string) (*floor, error) {
	cert, key, err := certutil.GenerateSelfSignedCertKey("localhost", []net.IP{net.IPv4(127, 0, 0, 1), net.IPv4zero}, nil)
	if err != nil {
		return nil, fmt.Errorf("make certificate: %w", err)
	}
	f := &floor{cert: filepath.Join(dir, "floor.crt"), key: filepath.Join(dir, "floor.key"), bundle: base64.StdEncoding.EncodeToString(cert)}
	return f, errors.Join(os.WriteFile(f.cert, cert, 0o600), os.WriteFile(f.key, key, 0o600))
}

// start returns once the process listens.
func (f *floor) start() error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.Command(self, answerCommand, f.cert, f.key)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start webhooks that do nothing: %w", err)
	}
	f.cmd = cmd
	address, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		return errors.Join(fmt.Errorf("webhooks that do nothing do not listen: %w", err), f.stop())
	}
	f.url = "https://" + strings.TrimSpace(address)
	return nil
}

// stop is no error where nothing runs.
func (f *floor) stop() error {
	if f.cmd == nil {
		return nil
	}
	cmd := f.cmd
	f.cmd = nil
	if err := cmd.Process.Kill(); err != nil {
		return fmt.Errorf("stop webhooks that do nothing: %w", err)
	}
	_ = cmd.Wait() // it was killed
	return nil
}

// answer serves until it is killed. It says on stdout where.
func answer(cert, key string) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(l.Addr())
	server := &http.Server{
		Handler: http.HandlerFunc(reply), TLSConfig: &tls.Config{MinVersion: tls.VersionTLS13}, ReadHeaderTimeout: 10 * time.Second,
	}
	return server.ServeTLS(l, cert, key)
}

// reply admits whatever it is asked for. A pod of the capped kind gets the patch that caps it, so that the API server does the
// same work as for a webhook that decides.
func reply(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	_, rest, ok := bytes.Cut(body, []byte(`"uid":"`)) // the request's comes first
	uid, _, ok2 := bytes.Cut(rest, []byte(`"`))
	if err != nil || !ok || !ok2 || r.ProtoMajor != 1 { // by HTTP/2 no cluster calls
		http.Error(w, "no review by HTTP/1.1", http.StatusBadRequest)
		return
	}
	patch := ""
	if r.URL.Path == "/mutate" && bytes.Contains(body, []byte(`"namespace":"bounded"`)) {
		const operations = `[{"op":"add","path":"/metadata/annotations/kubernetes.io~1egress-bandwidth","value":"50M"}]`
		patch = `,"patchType":"JSONPatch","patch":"` + base64.StdEncoding.EncodeToString([]byte(operations)) + `"`
	}
	w.Header().Set("Content-Type", "application/json")
	fmt.Fprintf(w, `{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1","response":{"uid":"%s","allowed":true%s}}`, uid, patch)
}
