// SPDX-License-Identifier: Apache-2.0

package kubenode

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/clientcmd/api"
	"k8s.io/client-go/util/cert"
	"k8s.io/client-go/util/keyutil"

	"kmesh/test/node"
)

// plane is the cluster's control plane, as far as there is one. It is outside the machine, so that a reboot leaves it.
type plane struct {
	etcd, apiserver *node.Process
	ca              []byte
	kubeletToken    string
}

func (p *plane) stop() {
	for _, proc := range []*node.Process{p.apiserver, p.etcd} {
		if proc != nil {
			proc.Kill()
		}
	}
}

func (n *Node) startPlane(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, bootLimit)
	defer cancel()
	dir := filepath.Join(n.Dir, "plane")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	p := &plane{}
	n.plane = p
	admin, err := n.writeCredentials(dir)
	if err != nil {
		return fmt.Errorf("making credentials: %w", err)
	}
	const client, peer = "http://127.0.0.1:2379", "http://127.0.0.1:2380"
	p.etcd, err = n.startOutside("etcd",
		"--data-dir", filepath.Join(dir, "etcd"), "--unsafe-no-fsync", "--log-level", "warn",
		"--listen-client-urls", client, "--advertise-client-urls", client,
		"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", "default="+peer)
	if err != nil {
		return err
	}
	address := ServiceIP.String()
	p.apiserver, err = n.startOutside("kube-apiserver",
		"--etcd-servers", client,
		"--bind-address", address, "--secure-port", "443", "--advertise-address", address, "--endpoint-reconciler-type", "none",
		"--service-cluster-ip-range", serviceRange, "--kubelet-preferred-address-types", "InternalIP",
		"--tls-cert-file", filepath.Join(dir, "api.crt"), "--tls-private-key-file", filepath.Join(dir, "api.key"), "--cert-dir", dir,
		"--token-auth-file", filepath.Join(dir, "tokens.csv"), "--authorization-mode", "Node,RBAC", "--enable-admission-plugins", "NodeRestriction",
		"--service-account-issuer", "https://kubernetes.default.svc",
		"--service-account-key-file", filepath.Join(dir, "accounts.key"), "--service-account-signing-key-file", filepath.Join(dir, "accounts.key"))
	if err != nil {
		return err
	}
	n.Config = &rest.Config{
		Host: "https://" + address, BearerToken: admin, TLSClientConfig: rest.TLSClientConfig{CAData: p.ca},
		Dial: n.DialContext, QPS: 200, Burst: 400,
	}
	if n.Client, err = kubernetes.NewForConfig(n.Config); err != nil {
		return err
	}
	err = until(ctx, bootLimit, "the API server was not ready", func(ctx context.Context) error {
		for _, proc := range []*node.Process{p.etcd, p.apiserver} {
			select {
			case <-proc.Done():
				return fmt.Errorf("%s ended: %w", filepath.Base(proc.Path), errors.Join(proc.Wait(), errEnded))
			default:
			}
		}
		_, err := n.Client.Discovery().RESTClient().Get().AbsPath("/readyz").DoRaw(ctx)
		return err
	})
	if err != nil {
		return fmt.Errorf("%w\n%s\n%s", err, n.logTail("etcd", 10), n.logTail("kube-apiserver", 10))
	}
	return n.EnsureNamespace(ctx, "default")
}

var errEnded = errors.New("it was to go on")

// startOutside starts a program of Kubernetes in the node's network, but outside its machine.
func (n *Node) startOutside(name string, args ...string) (*node.Process, error) {
	log, err := n.openLog(name)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := exec.Command(filepath.Join(n.parts.kubernetes, name), args...)
	cmd.Stdout, cmd.Stderr = log, log
	return n.StartCmd(cmd, name)
}

// writeCredentials makes the API server's certificate, the key of service accounts' tokens, and a token each for an
// administrator and the kubelet. It returns the administrator's.
func (n *Node) writeCredentials(dir string) (admin string, err error) {
	crt, key, err := cert.GenerateSelfSignedCertKey(ServiceIP.String(), []net.IP{NodeIP.AsSlice()},
		[]string{"kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"})
	if err != nil {
		return "", err
	}
	accounts, err := keyutil.MakeEllipticPrivateKeyPEM()
	if err != nil {
		return "", err
	}
	admin, n.plane.kubeletToken = token(), token()
	n.plane.ca = crt // the authority that signed it comes with it
	tokens := fmt.Sprintf("%s,admin,1,system:masters\n%s,system:node:%s,2,system:nodes\n", admin, n.plane.kubeletToken, n.Name)
	for name, content := range map[string][]byte{"api.crt": crt, "api.key": key, "accounts.key": accounts, "tokens.csv": []byte(tokens)} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			return "", err
		}
	}
	return admin, nil
}

func token() string {
	b := make([]byte, 16)
	_, _ = rand.Read(b) // never fails
	return hex.EncodeToString(b)
}

// kubeconfig is a client's configuration as a file has it.
func (n *Node) kubeconfig(token string) ([]byte, error) {
	c := api.NewConfig()
	c.Clusters["e2e"] = &api.Cluster{Server: n.Config.Host, CertificateAuthorityData: n.plane.ca}
	c.AuthInfos["e2e"] = &api.AuthInfo{Token: token}
	c.Contexts["e2e"] = &api.Context{Cluster: "e2e", AuthInfo: "e2e"}
	c.CurrentContext = "e2e"
	return clientcmd.Write(*c)
}
