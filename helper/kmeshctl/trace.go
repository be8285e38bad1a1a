// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"

	apiv1 "kmesh/helper/api/v1"
)

func traceCommand(opts *options, stdout io.Writer) *cobra.Command {
	var count int
	cmd := &cobra.Command{
		Use:   "trace NAMESPACE/NAME | FLOW",
		Short: "Show every packet of a pod's HTTP connections, or of one of them, until interrupted",
		Long: `Show every packet of a pod's HTTP connections, or of one of them, which kmeshctl
flows lists: what was done with it, its sequence numbers as they came and as they
went on. It ends when it is interrupted, after --count packets, or with the flow.

The first packets of a connection that begins meanwhile are missing: it is found a
moment later. With -o json every packet is an object on a line of its own.`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usageError{fmt.Errorf("trace takes one pod or flow, %d arguments are given", len(args))}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if count < 0 {
				return usageError{errors.New("--count is negative")}
			}
			in := &apiv1.TraceRequest{Flow: args[0]}
			if strings.Contains(args[0], "/") {
				in.Flow = ""
				if in.Namespace, in.Name, err = parsePod(args[0]); err != nil {
					return err
				}
			}
			return trace(cmd.Context(), opts, stdout, in, count)
		},
	}
	cmd.Flags().IntVar(&count, "count", 0, "end after so many packets; 0: do not")
	return cmd
}

// trace prints packets until ctx ends, which is how it is meant to end.
func trace(ctx context.Context, opts *options, stdout io.Writer, in *apiv1.TraceRequest, count int) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // the helper then clears the flags
	conn, err := dial(ctx, opts.socket)
	if err != nil {
		return err
	}
	defer conn.Close()
	stream, err := apiv1.NewKmeshClient(conn).Trace(ctx, in)
	if err != nil {
		return sentence(opts.socket, err)
	}
	p := &packets{w: stdout, json: opts.output == "json"}
	for n := 0; count == 0 || n < count; n++ {
		rec, err := stream.Recv()
		switch {
		case errors.Is(err, io.EOF), status.Code(err) == codes.Canceled && ctx.Err() != nil:
			return nil
		case err != nil:
			return sentence(opts.socket, err)
		}
		if err := p.print(rec); err != nil {
			return err
		}
	}
	return nil
}

// packets prints one line for each packet, as it comes: columns are of fixed width.
type packets struct {
	w     io.Writer
	json  bool
	begun bool
	first int64 // when, ns
}

const packetLine = "%-12s %-10s %-3s %-3s %-8s %-5s %-22s %-22s %6s %6s %s\n"

func (p *packets) print(r *apiv1.TraceRecord) error {
	if p.json {
		raw, err := protojson.MarshalOptions{EmitUnpopulated: true}.Marshal(r)
		if err != nil {
			return fmt.Errorf("print as json: %w", err)
		}
		var one json.RawMessage = raw
		return json.NewEncoder(p.w).Encode(one) // also evens out protojson's spaces
	}
	if !p.begun {
		p.begun, p.first = true, r.AtNanoseconds
		if _, err := fmt.Fprintf(p.w, packetLine, "TIME", "FLOW", "DIR", "LEG", "VERDICT", "FLAGS", "SEQ > NEW", "ACK > NEW", "LENGTH", "WINDOW", "STATE"); err != nil {
			return err
		}
	}
	if r.Lost > 0 {
		if _, err := fmt.Fprintf(p.w, "%d packets are missing here: they came faster than they were read\n", r.Lost); err != nil {
			return err
		}
	}
	dir := "in"
	if r.Egress {
		dir = "out"
	}
	state := r.State
	if r.Pin != "" {
		state += ", pinned " + r.Pin
	}
	_, err := fmt.Fprintf(p.w, packetLine, fmt.Sprintf("%+.6f", float64(r.AtNanoseconds-p.first)/1e9), r.Flow, dir, number(r.Leg),
		r.Verdict, r.TcpFlags, moved(r.Seq, r.NewSeq), moved(r.Ack, r.NewAck), number(r.Length), number(r.Window), state)
	return err
}

// moved writes a sequence number, and what became of it.
func moved(from, to uint32) string {
	if from == to {
		return number(from)
	}
	return number(from) + ">" + number(to)
}
