// SPDX-License-Identifier: Apache-2.0

package clients

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/net/websocket"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// roles are what this program is when it is started again inside a pod.
var roles = map[string]func(args []string) error{
	"serve":     serve,
	"client":    client,
	"h2c":       h2cClient,
	"websocket": webSocketClient,
	"grpc":      grpcClient,
}

// serve is the Go server of a pod: NAME DIR ADDRESS, where an address means HTTP there and nothing else.
func serve(args []string) error {
	name, dir, addr := args[0], args[1], args[2]
	ended := make(chan error, 1)
	start := func(addr string, serve func(net.Listener) error) {
		l, err := net.Listen("tcp", addr)
		if err != nil {
			ended <- err
			return
		}
		go func() { ended <- serve(l) }()
	}
	if addr != "" {
		start(addr, (&http.Server{Handler: handler(name, dir)}).Serve)
		return <-ended
	}
	at := func(port int) string { return fmt.Sprintf(":%d", port) }
	start(at(mainPort), (&http.Server{Handler: handler(name, dir)}).Serve)
	start(at(idlePort), (&http.Server{Handler: handler(name+"-idle", dir), IdleTimeout: idleTime}).Serve)
	h2c := &http.Server{Handler: handler("", dir), Protocols: new(http.Protocols)}
	h2c.Protocols.SetUnencryptedHTTP2(true)
	start(at(h2cPort), h2c.Serve)
	start(at(tlsPort), func(l net.Listener) error {
		return (&http.Server{Handler: handler("", dir)}).ServeTLS(l, filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"))
	})
	start(at(grpcPort), grpcServer().Serve)
	start(at(smtpPort), serveSMTP)
	return <-ended
}

// handler answers paths below /NAME and /any: files, and what was sent. An empty name takes every path.
func handler(name, dir string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		first, rest, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
		if name != "" && first != name && first != name+"-idle" && first != "any" {
			http.NotFound(w, r)
			return
		}
		w.Header().Set("X-Server", "go")
		kind, file, _ := strings.Cut(rest, "/")
		switch kind {
		case "file":
			http.ServeFile(w, r, filepath.Join(dir, "file", file))
		case "echo":
			body, err := io.ReadAll(r.Body)
			if err != nil {
				http.Error(w, err.Error(), http.StatusBadRequest)
				return
			}
			_, _ = w.Write(body) // in chunks, where it is long
		case "refuse":
			http.Error(w, "not wanted", http.StatusForbidden) // without having read the body
		case "websocket":
			websocket.Server{Handler: func(c *websocket.Conn) { _, _ = io.Copy(c, c) }}.ServeHTTP(w, r)
		default:
			http.NotFound(w, r)
		}
	})
}

// serveSMTP takes mail, and answers with its hash.
func serveSMTP(l net.Listener) error {
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer c.Close()
			r := bufio.NewReader(c)
			fmt.Fprint(c, "220 mail.test ready\r\n")
			for {
				line, err := r.ReadString('\n')
				if err != nil {
					return
				}
				verb, _, _ := strings.Cut(strings.ToUpper(strings.TrimSpace(line)), " ")
				switch verb {
				case "DATA":
					fmt.Fprint(c, "354 go on\r\n")
					var mail strings.Builder
					for line = ""; line != ".\r\n"; {
						if line, err = r.ReadString('\n'); err != nil {
							return
						}
						if line != ".\r\n" {
							mail.WriteString(strings.TrimPrefix(line, "."))
						}
					}
					fmt.Fprintf(c, "250 got %x\r\n", sha256.Sum256([]byte(mail.String())))
				case "QUIT":
					fmt.Fprint(c, "221 bye\r\n")
					return
				default:
					fmt.Fprint(c, "250 mail.test\r\n")
				}
			}
		}()
	}
}

// client is Go's HTTP client: a request for each line of its input (see plan_test.go).
func client([]string) error {
	hc := http.Client{Transport: &http.Transport{}, Timeout: time.Minute}
	return answering(os.Stdin, os.Stdout, func(method, url string, body []byte) (string, error) {
		// Of unknown length, and so in chunks, if it is long.
		var r io.Reader = bytes.NewReader(body)
		if len(body) > 1<<16 {
			r = io.NopCloser(r)
		}
		req, err := http.NewRequest(method, url, r)
		if err != nil {
			return "", err
		}
		res, err := hc.Do(req)
		if err != nil {
			return "", err
		}
		defer res.Body.Close()
		got, err := io.ReadAll(res.Body)
		return fmt.Sprintf("%d %s %x", res.StatusCode, res.Header.Get("X-Server"), sha256.Sum256(got)), err
	})
}

// h2cClient is Go's client of HTTP/2 without TLS, alike.
func h2cClient([]string) error {
	tr := &http.Transport{Protocols: new(http.Protocols)}
	tr.Protocols.SetUnencryptedHTTP2(true)
	hc := http.Client{Transport: tr, Timeout: time.Minute}
	return answering(os.Stdin, os.Stdout, func(method, url string, body []byte) (string, error) {
		req, err := http.NewRequest(method, url, bytes.NewReader(body))
		if err != nil {
			return "", err
		}
		res, err := hc.Do(req)
		if err != nil {
			return "", err
		}
		defer res.Body.Close()
		got, err := io.ReadAll(res.Body)
		return fmt.Sprintf("%d %s %x", res.StatusCode, res.Header.Get("X-Server")+"/"+res.Proto, sha256.Sum256(got)), err
	})
}

// webSocketClient sends each line's body through one connection to its URL, as a message, and tells what came back.
func webSocketClient([]string) error {
	var c *websocket.Conn
	return answering(os.Stdin, os.Stdout, func(_, url string, body []byte) (string, error) {
		var err error
		if c == nil {
			if c, err = websocket.Dial(strings.Replace(url, "http:", "ws:", 1), "", "http://origin.test/"); err != nil {
				return "", err
			}
		}
		_ = c.SetDeadline(time.Now().Add(time.Minute))
		// The server copies what it reads while it reads: a client that wrote all before it read would wait for a
		// server that waits for it, as soon as what is on the way is more than their buffers hold.
		written := make(chan error, 1)
		go func() {
			_, err := c.Write(body)
			written <- err
		}()
		got := make([]byte, len(body)) // may come back as several messages
		_, err = io.ReadFull(c, got)
		err = errors.Join(err, <-written)
		return fmt.Sprintf("101 - %x", sha256.Sum256(got)), err
	})
}

// answering calls do for each line "METHOD URL FILE" of what is asked, with the file's content, and tells its answer
// or its error.
func answering(asked io.Reader, out io.Writer, do func(method, url string, body []byte) (string, error)) error {
	for in := bufio.NewScanner(asked); in.Scan(); {
		var method, url, file string
		if _, err := fmt.Sscan(in.Text(), &method, &url, &file); err != nil {
			return fmt.Errorf("line %q: %w", in.Text(), err)
		}
		var body []byte
		if file != "-" {
			var err error
			if body, err = os.ReadFile(file); err != nil {
				return err
			}
		}
		answer, err := do(method, url, body)
		if err != nil {
			answer = "error " + strings.ReplaceAll(err.Error(), "\n", " ")
		}
		fmt.Fprintln(out, answer)
	}
	return nil
}

// The service of gRPC: one call that answers with what it got, and a stream of such.
func grpcServer() *grpc.Server {
	s := grpc.NewServer(grpc.MaxRecvMsgSize(16 << 20))
	s.RegisterService(&grpc.ServiceDesc{
		ServiceName: "test.Echo", HandlerType: (*any)(nil),
		Methods: []grpc.MethodDesc{{MethodName: "Once", Handler: func(_ any, ctx context.Context, dec func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
			m := new(wrapperspb.BytesValue)
			return m, dec(m)
		}}},
		Streams: []grpc.StreamDesc{{StreamName: "Stream", ClientStreams: true, ServerStreams: true, Handler: func(_ any, s grpc.ServerStream) error {
			for {
				m := new(wrapperspb.BytesValue)
				if err := s.RecvMsg(m); errors.Is(err, io.EOF) {
					return nil
				} else if err != nil {
					return err
				}
				if err := s.SendMsg(m); err != nil {
					return err
				}
			}
		}}},
	}, nil)
	return s
}

// grpcClient sends each line's body by the method Once or Stream to the URL's server, over one connection.
func grpcClient([]string) error {
	var conn *grpc.ClientConn
	var stream grpc.ClientStream
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	return answering(os.Stdin, os.Stdout, func(method, url string, body []byte) (string, error) {
		var err error
		if conn == nil {
			target, _, _ := strings.Cut(strings.TrimPrefix(url, "http://"), "/")
			if conn, err = grpc.NewClient("passthrough:///"+target, grpc.WithTransportCredentials(insecure.NewCredentials()),
				grpc.WithNoProxy(), grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(16<<20))); err != nil {
				return "", err
			}
		}
		in, out := wrapperspb.Bytes(body), new(wrapperspb.BytesValue)
		if method == "Stream" {
			if stream == nil {
				if stream, err = conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, "/test.Echo/Stream"); err != nil {
					return "", err
				}
			}
			if err := stream.SendMsg(in); err != nil {
				return "", err
			}
			err = stream.RecvMsg(out)
		} else {
			err = conn.Invoke(ctx, "/test.Echo/"+method, in, out)
		}
		return fmt.Sprintf("200 - %x", sha256.Sum256(out.GetValue())), err
	})
}
