// SPDX-License-Identifier: Apache-2.0

package plane

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"k8s.io/client-go/util/cert"
	"k8s.io/client-go/util/keyutil"
)

// well matches lines that say only that all is well: of containerd and etcd, of Kubernetes, and of istiod.
var well = regexp.MustCompile(`"level":"(debug|info)"|^I\d{4} |\t(debug|info)\t`)

// writeCredentials makes the API server's certificate, the key of service accounts' tokens, and a token for each user.
func (p *Plane) writeCredentials() error {
	crt, key, err := cert.GenerateSelfSignedCertKey(p.opts.Address.String(), p.opts.ips(), p.opts.names())
	if err != nil {
		return err
	}
	accounts, err := keyutil.MakeEllipticPrivateKeyPEM()
	if err != nil {
		return err
	}
	p.CA = crt // the authority that signed it comes with it
	p.tokens = map[string]string{admin: token()}
	tokens := fmt.Sprintf("%s,%s,1,system:masters\n", p.tokens[admin], admin)
	for user, groups := range p.opts.Users {
		p.tokens[user] = token()
		tokens += fmt.Sprintf("%s,%s,2,%q\n", p.tokens[user], user, strings.Join(groups, ","))
	}
	for name, content := range map[string][]byte{"api.crt": crt, "api.key": key, "accounts.key": accounts, "tokens.csv": []byte(tokens)} {
		if err := os.WriteFile(filepath.Join(p.dir, name), content, 0o600); err != nil {
			return err
		}
	}
	return nil
}

func token() string {
	b := make([]byte, 16)
	_, _ = rand.Read(b) // never fails
	return hex.EncodeToString(b)
}
