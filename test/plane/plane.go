// SPDX-License-Identifier: Apache-2.0

// Package plane is the control plane of a Kubernetes cluster on a test's node: etcd and kube-apiserver as they were
// released, in the node's network namespace, with RBAC, real tokens of service accounts, and nothing else.
//
//	p, err := plane.Start(ctx, plane.Options{Node: n, Address: addr, Port: 443, ServiceRange: "10.79.0.0/24"})
//	defer p.Stop()
//	err = p.Apply(ctx, objects, false)
//
// Invariant: nothing stands in for Kubernetes. There are no controllers and no scheduler, so a test puts into its
// namespaces what one would (EnsureNamespace), and gives its pods a nodeName.
package plane

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/clientcmd/api"

	"kmesh/test/node"
)

// startLimit is how long the two programs may take; a busy machine takes ten times what an idle one does.
const startLimit = 2 * time.Minute

// ErrEnded is in the chain of the error about a program that ended by itself.
var ErrEnded = errors.New("it was to go on")

// Options of a control plane. All are needed but Names, IPs and Users.
type Options struct {
	// Node is where it runs. Its folder is "plane" in the node's, its logs are in the node's "log".
	Node *node.Node
	// Programs is the folder of etcd and kube-apiserver, as setup.sh prints it.
	Programs string
	// Address and Port are where the API server listens, in the node's network namespace.
	Address netip.Addr
	Port    uint16
	// Names and IPs are what else its certificate is for.
	Names []string
	IPs   []netip.Addr
	// ServiceRange are the addresses of services.
	ServiceRange string
	// Users have a token each (UserConfig): their groups, by name. There always is an administrator.
	Users map[string][]string
}

// Plane is a control plane that runs.
type Plane struct {
	Client kubernetes.Interface
	Config *rest.Config // of an administrator, from outside
	CA     []byte       // what the API server's certificate leads to

	opts            Options
	dir             string
	tokens          map[string]string
	etcd, apiserver *node.Process
}

const admin = "admin"

// Start starts both, and waits until the API server is ready. What it started is ended if it fails.
func Start(ctx context.Context, opts Options) (*Plane, error) {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	p := &Plane{opts: opts, dir: filepath.Join(opts.Node.Dir, "plane")}
	if err := p.start(ctx); err != nil {
		p.Stop()
		return nil, fmt.Errorf("starting a cluster's control plane: %w", err)
	}
	return p, nil
}

// Stop ends both at once. A plane that is nil, or was stopped, has nothing to end.
func (p *Plane) Stop() {
	if p == nil {
		return
	}
	for _, proc := range []*node.Process{p.apiserver, p.etcd} {
		if proc != nil {
			proc.Kill()
		}
	}
}

func (p *Plane) start(ctx context.Context) error {
	if err := os.Mkdir(p.dir, 0o700); err != nil {
		return err
	}
	if err := p.writeCredentials(); err != nil {
		return fmt.Errorf("making credentials: %w", err)
	}
	const client, peer = "http://127.0.0.1:2379", "http://127.0.0.1:2380"
	var err error
	p.etcd, err = p.run("etcd",
		"--data-dir", filepath.Join(p.dir, "etcd"), "--unsafe-no-fsync", "--log-level", "warn",
		"--listen-client-urls", client, "--advertise-client-urls", client,
		"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", "default="+peer)
	if err != nil {
		return err
	}
	address := p.opts.Address.String()
	p.apiserver, err = p.run("kube-apiserver",
		"--etcd-servers", client,
		"--bind-address", address, "--secure-port", strconv.Itoa(int(p.opts.Port)), "--advertise-address", address, "--endpoint-reconciler-type", "none",
		"--service-cluster-ip-range", p.opts.ServiceRange, "--kubelet-preferred-address-types", "InternalIP",
		"--tls-cert-file", filepath.Join(p.dir, "api.crt"), "--tls-private-key-file", filepath.Join(p.dir, "api.key"), "--cert-dir", p.dir,
		"--token-auth-file", filepath.Join(p.dir, "tokens.csv"), "--authorization-mode", "Node,RBAC", "--enable-admission-plugins", "NodeRestriction",
		"--service-account-issuer", "https://kubernetes.default.svc",
		"--service-account-key-file", filepath.Join(p.dir, "accounts.key"), "--service-account-signing-key-file", filepath.Join(p.dir, "accounts.key"))
	if err != nil {
		return err
	}
	p.Config = &rest.Config{
		Host: "https://" + netip.AddrPortFrom(p.opts.Address, p.opts.Port).String(), BearerToken: p.tokens[admin],
		TLSClientConfig: rest.TLSClientConfig{CAData: p.CA}, Dial: p.opts.Node.DialContext, QPS: 200, Burst: 400,
	}
	if p.Client, err = kubernetes.NewForConfig(p.Config); err != nil {
		return err
	}
	err = until(ctx, "the API server was not ready", func(ctx context.Context) error {
		for _, proc := range []*node.Process{p.etcd, p.apiserver} {
			select {
			case <-proc.Done():
				return fmt.Errorf("%s ended: %w", filepath.Base(proc.Path), errors.Join(proc.Wait(), ErrEnded))
			default:
			}
		}
		_, err := p.Client.Discovery().RESTClient().Get().AbsPath("/readyz").DoRaw(ctx)
		return err
	})
	if err != nil {
		return fmt.Errorf("%w\n%s\n%s", err, LogTail(p.logPath("etcd"), 10), LogTail(p.logPath("kube-apiserver"), 10))
	}
	return p.EnsureNamespace(ctx, "default")
}

// run starts one of the programs in the node's network, but outside its machine.
func (p *Plane) run(name string, args ...string) (*node.Process, error) {
	log, err := os.OpenFile(p.logPath(name), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := exec.Command(filepath.Join(p.opts.Programs, name), args...)
	cmd.Stdout, cmd.Stderr = log, log
	return p.opts.Node.StartCmd(cmd, name)
}

func (p *Plane) logPath(name string) string {
	return filepath.Join(p.opts.Node.Dir, "log", name+".log")
}

// AdminConfig is an administrator's configuration (a kubeconfig) as a file has it.
func (p *Plane) AdminConfig() ([]byte, error) { return p.TokenConfig(p.tokens[admin]) }

// UserConfig is that of one of Options.Users.
func (p *Plane) UserConfig(user string) ([]byte, error) {
	token, ok := p.tokens[user]
	if !ok {
		return nil, fmt.Errorf("there is no user %q: name it in Options.Users", user)
	}
	return p.TokenConfig(token)
}

// TokenConfig is that of whoever has a token.
func (p *Plane) TokenConfig(token string) ([]byte, error) {
	const name = "test"
	c := api.NewConfig()
	c.Clusters[name] = &api.Cluster{Server: p.Config.Host, CertificateAuthorityData: p.CA}
	c.AuthInfos[name] = &api.AuthInfo{Token: token}
	c.Contexts[name] = &api.Context{Cluster: name, AuthInfo: name}
	c.CurrentContext = name
	return clientcmd.Write(*c)
}

// until asks every 20 ms until the answer is nil, and gives the last one when the time is over.
func until(ctx context.Context, what string, ask func(ctx context.Context) error) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		last := ask(ctx)
		if last == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: %w", what, last)
		case <-tick.C:
		}
	}
}

func (o Options) ips() []net.IP {
	var out []net.IP
	for _, ip := range o.IPs {
		out = append(out, ip.AsSlice())
	}
	return out
}

func (o Options) names() []string {
	return append([]string{"kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"}, o.Names...)
}

// LogTail is the end of a program's log, without what says only that all is well.
func LogTail(path string, lines int) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	var kept []string
	for line := range strings.Lines(string(b)) {
		if !well.MatchString(line) {
			kept = append(kept, strings.TrimRight(line, "\n"))
		}
	}
	kept = kept[max(0, len(kept)-lines):]
	return fmt.Sprintf("--- %s, the last %d lines:\n%s", path, len(kept), strings.Join(kept, "\n"))
}
