// SPDX-License-Identifier: Apache-2.0

package operation

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"strings"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/kubepace/kubepace/tests/admission/lab"
)

// A new CA and a new certificate every 10 s, under load, lose nothing; all replicas, leading or not, follow.
func TestRotationUnderLoad(t *testing.T) {
	s := needService(t)
	l := s.startLoad(t, 4)
	authorities, widest := map[string]bool{}, 0
	served := map[string]map[string]bool{}
	// The API server connects anew with each bundle; which replica that connection goes to, and is kept for, is chance.
	eventually(t, "four generations of certificates, and calls of every replica", func() bool {
		data := s.secret(t)
		authorities[string(data["ca.key"])] = true
		widest = max(widest, bytes.Count(data["ca.crt"], []byte("BEGIN")))
		for _, r := range s.replicas {
			if served[r.Name] == nil {
				served[r.Name] = map[string]bool{}
			}
			served[r.Name][leafOf(t, r, data["ca.crt"])] = true
		}
		return len(authorities) >= 4 && len(s.notCalled()) == 0 || l.lost() > 0
	})
	l.more(t, "after the last rotation")
	l.finish(t)
	for name, leaves := range served {
		if len(leaves) < 3 {
			t.Errorf("%s served %d certificates", name, len(leaves))
		}
	}
	if widest != 2 {
		t.Errorf("up to %d CAs were trusted at a time, want the old and the new one", widest)
	}
}

// notCalled are the replicas that have not answered a single review of a pod.
func (s *service) notCalled() (names []string) {
	const answers = `controller_runtime_webhook_requests_total{code="200",webhook="/mutate/pods"} `
	for _, r := range s.replicas {
		body, err := r.Metrics()
		if _, count, found := strings.Cut(body, answers); err != nil || !found || strings.HasPrefix(count, "0\n") {
			names = append(names, r.Name)
		}
	}
	return names
}

// leafOf is the certificate that the replica serves now. It fails the test where the bundle, read just before, does not
// verify it: an API server would not accept it either.
func leafOf(t *testing.T, r *lab.Replica, bundle []byte) string {
	t.Helper()
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(bundle)
	conn, err := tls.Dial("tcp", r.Address, &tls.Config{RootCAs: roots})
	if err != nil {
		t.Fatalf("%s, at %s: %v\n%s\n%s", r.Name, time.Now().Format("15:04:05.000"), err, describe(bundle), shared.logs())
	}
	defer conn.Close()
	return string(conn.ConnectionState().PeerCertificates[0].Raw)
}

func describe(bundle []byte) (out string) {
	for block, rest := pem.Decode(bundle); block != nil; block, rest = pem.Decode(rest) {
		if c, err := x509.ParseCertificate(block.Bytes); err == nil {
			out += "trusted: until " + c.NotAfter.String() + "\n"
		}
	}
	return out
}

// A deleted Secret is replaced, with what replicas still serve trusted meanwhile.
func TestDeletedSecretUnderLoad(t *testing.T) {
	s := needService(t)
	before := s.secret(t)["ca.key"]
	l := s.startLoad(t, 2)
	l.more(t, "before")
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: lab.SystemNamespace, Name: "kubepace-webhook-tls"}}
	if err := s.Client.Delete(t.Context(), secret); err != nil {
		t.Fatal(err)
	}
	eventually(t, "another CA in use", func() bool {
		key := s.secret(t)["ca.key"]
		return len(key) > 0 && !bytes.Equal(key, before) || l.lost() > 0
	})
	l.more(t, "by the new certificate")
	l.finish(t)
}

// A leader that loses the lead goes on serving, and another one rotates.
func TestLosingTheLead(t *testing.T) {
	s := needService(t)
	lease := &coordinationv1.Lease{}
	key := client.ObjectKey{Namespace: lab.SystemNamespace, Name: "kubepace-webhook-leader"}
	if err := s.Client.Get(t.Context(), key, lease); err != nil {
		t.Fatal(err)
	}
	l := s.startLoad(t, 2)
	thief, now := "a thief", metav1.NowMicro()
	stolen := lease.DeepCopy()
	stolen.Spec.HolderIdentity, stolen.Spec.RenewTime = &thief, &now
	if err := s.Client.Patch(t.Context(), stolen, client.MergeFrom(lease)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the old leader to notice", func() bool { return strings.Contains(s.logs(), "not leading any more") })
	eventually(t, "a new leader", func() bool {
		return s.Client.Get(t.Context(), key, lease) == nil && *lease.Spec.HolderIdentity != thief
	})
	before := s.secret(t)["ca.key"]
	eventually(t, "the next rotation", func() bool { return !bytes.Equal(s.secret(t)["ca.key"], before) || l.lost() > 0 })
	l.finish(t)
	for _, r := range s.replicas {
		if !r.Running() {
			t.Errorf("%s ended", r.Name)
		}
	}
}
