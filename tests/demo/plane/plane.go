// SPDX-License-Identifier: Apache-2.0

// Package plane runs a real control plane, etcd and kube-apiserver, on loopback with certificates, service accounts
// and RBAC, for one run of the demonstration.
package plane

import (
	"context"
	"crypto/x509/pkix"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/kubepace/kubepace/tests/process"
)

const (
	etcdURL = "http://127.0.0.1:2379"
	server  = "https://127.0.0.1:6443"
)

// Options say where things are.
type Options struct {
	Binaries string // folder with etcd and kube-apiserver
	Dir      string // empty folder for keys and data
	Logs     string // folder for logs
	NodeIP   net.IP // an address of this machine that is not loopback; kube-apiserver advertises nothing else
	// ServerArgs are further flags of kube-apiserver, may be empty. The last of a flag counts.
	ServerArgs []string
}

// Plane is a running control plane.
type Plane struct {
	Admin     *rest.Config // a member of system:masters
	APIServer *process.Process

	opts  Options
	pki   *pki
	procs []*process.Process
}

// Start starts etcd and kube-apiserver and waits until the API answers. On an error nothing is left running.
func Start(ctx context.Context, opts Options) (*Plane, error) {
	p := &Plane{opts: opts}
	if err := p.start(ctx); err != nil {
		p.Stop()
		return nil, err
	}
	return p, nil
}

func (p *Plane) start(ctx context.Context) error {
	if err := p.makeKeys(); err != nil {
		return err
	}
	etcd, err := p.Run("etcd", "--data-dir", filepath.Join(p.opts.Dir, "etcd"), "--unsafe-no-fsync",
		"--listen-client-urls", etcdURL, "--advertise-client-urls", etcdURL,
		"--listen-peer-urls", "http://127.0.0.1:2380", "--initial-advertise-peer-urls", "http://127.0.0.1:2380",
		"--initial-cluster", "default=http://127.0.0.1:2380")
	if err != nil {
		return err
	}
	if err := etcd.Await(ctx, func(ctx context.Context) error { return Answers(ctx, etcdURL+"/readyz") }); err != nil {
		return err
	}
	if p.APIServer, err = p.Run("kube-apiserver", p.apiserverArgs()...); err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(p.Admin)
	if err != nil {
		return fmt.Errorf("make client: %w", err)
	}
	return p.APIServer.Await(ctx, func(ctx context.Context) error {
		return client.RESTClient().Get().AbsPath("/readyz").Do(ctx).Error()
	})
}

func (p *Plane) makeKeys() error {
	var err error
	if p.pki, err = newPKI(p.opts.Dir); err != nil {
		return err
	}
	if err := p.pki.serviceAccountKey(); err != nil {
		return err
	}
	if _, _, err := p.pki.issue("apiserver", pkix.Name{CommonName: "kube-apiserver"}, net.IPv4(127, 0, 0, 1), p.opts.NodeIP, net.IPv4(10, 96, 0, 1)); err != nil {
		return err
	}
	cert, key, err := p.pki.issue("admin", pkix.Name{CommonName: "demo", Organization: []string{"system:masters"}})
	if err != nil {
		return err
	}
	p.Admin = &rest.Config{Host: server, TLSClientConfig: rest.TLSClientConfig{CAData: p.pki.pem, CertData: cert, KeyData: key}, QPS: 100, Burst: 200}
	return nil
}

func (p *Plane) apiserverArgs() []string {
	return append([]string{
		"--etcd-servers", etcdURL,
		"--bind-address", "127.0.0.1", "--secure-port", "6443", "--advertise-address", p.opts.NodeIP.String(),
		"--cert-dir", p.opts.Dir, "--tls-cert-file", p.pki.path("apiserver.crt"), "--tls-private-key-file", p.pki.path("apiserver.key"),
		"--client-ca-file", p.pki.path("ca.crt"),
		"--service-account-issuer", "https://kubernetes.default.svc",
		"--service-account-signing-key-file", p.pki.path("sa.key"), "--service-account-key-file", p.pki.path("sa.pub"),
		"--authorization-mode", "Node,RBAC", "--allow-privileged", "--service-cluster-ip-range", "10.96.0.0/16",
	}, p.opts.ServerArgs...)
}

// Run starts another program of the control plane; Stop ends it as well.
func (p *Plane) Run(name string, args ...string) (*process.Process, error) {
	proc, err := process.Start(name, filepath.Join(p.opts.Logs, name+".log"), nil, filepath.Join(p.opts.Binaries, name), args...)
	if err != nil {
		return nil, err
	}
	p.procs = append(p.procs, proc)
	return proc, nil
}

// Kubeconfig writes a kubeconfig with a fresh token of the service account and returns its path.
func (p *Plane) Kubeconfig(ctx context.Context, namespace, serviceAccount string) (string, error) {
	client, err := kubernetes.NewForConfig(p.Admin)
	if err != nil {
		return "", fmt.Errorf("make client: %w", err)
	}
	token, err := client.CoreV1().ServiceAccounts(namespace).CreateToken(ctx, serviceAccount, &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
	if err != nil {
		return "", fmt.Errorf("ask for a token of %s/%s: %w", namespace, serviceAccount, err)
	}
	return p.writeKubeconfig(serviceAccount, server, namespace, &clientcmdapi.AuthInfo{Token: token.Status.Token})
}

// UserKubeconfig writes NAME.kubeconfig with a client certificate of the user, for the API server at address, and returns
// its path.
func (p *Plane) UserKubeconfig(name, address string, user pkix.Name) (string, error) {
	cert, key, err := p.pki.issue(name, user)
	if err != nil {
		return "", err
	}
	return p.writeKubeconfig(name, address, "", &clientcmdapi.AuthInfo{ClientCertificateData: cert, ClientKeyData: key})
}

func (p *Plane) writeKubeconfig(name, address, namespace string, user *clientcmdapi.AuthInfo) (string, error) {
	config := clientcmdapi.NewConfig()
	config.Clusters["demo"] = &clientcmdapi.Cluster{Server: address, CertificateAuthorityData: p.pki.pem}
	config.AuthInfos[name] = user
	config.Contexts["demo"] = &clientcmdapi.Context{Cluster: "demo", AuthInfo: name, Namespace: namespace}
	config.CurrentContext = "demo"
	path := filepath.Join(p.opts.Dir, name+".kubeconfig")
	if err := clientcmd.WriteToFile(*config, path); err != nil {
		return "", fmt.Errorf("write kubeconfig: %w", err)
	}
	return path, nil
}

// Stop ends the control plane, the newest process first.
func (p *Plane) Stop() {
	for i := len(p.procs) - 1; i >= 0; i-- {
		_ = p.procs[i].Stop(5 * time.Second) // what hangs is killed
	}
}

// Answers returns nil if url answers 200.
func Answers(ctx context.Context, url string) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	if err := response.Body.Close(); err != nil {
		return err
	}
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answers %s", url, response.Status)
	}
	return nil
}
