// SPDX-License-Identifier: Apache-2.0

package main

import (
	"slices"
	"testing"
	"time"
)

func TestParseFortio(t *testing.T) {
	const (
		head  = `{"ActualDuration":2000000000,"NumThreads":8,`
		kept  = `"SocketCount":8,`
		good  = `"RetCodes":{"200":10},`
		none  = `"ErrorsDurationHistogram":{"Count":0},`
		times = `"DurationHistogram":{"Count":10,"Percentiles":[{"Percentile":50,"Value":0.00015},{"Percentile":99,"Value":0.002}]}}`
	)
	c, err := parseFortio([]byte(head + kept + good + none + times))
	if err != nil || c.Count != 10 || c.Seconds != 2 || c.P50 < 149.9 || c.P50 > 150.1 || c.P99 < 1999 || c.P99 > 2001 {
		t.Errorf("%+v, %v", c, err)
	}
	for name, out := range map[string]string{
		"a wrong status":     head + kept + `"RetCodes":{"200":9,"503":1},` + none + times,
		"only wrong ones":    head + kept + `"RetCodes":{"404":10},` + none + times,
		"a socket's error":   head + kept + `"RetCodes":{"-1":1,"200":9},` + none + times,
		"an error":           head + kept + good + `"ErrorsDurationHistogram":{"Count":1},` + times,
		"one without status": head + kept + `"RetCodes":{"200":9},` + none + times,
		"another connection": head + `"SocketCount":9,` + good + none + times,
		"nothing counted":    head + kept + `"RetCodes":{"200":0},` + none + `"DurationHistogram":{"Count":0}}`,
		"no time":            `{"NumThreads":8,` + kept + good + none + times,
		"no percentiles":     head + kept + good + none + `"DurationHistogram":{"Count":10}}`,
		"no JSON":            "unable to connect\n",
		"nothing":            "",
	} {
		if _, err := parseFortio([]byte(out)); err == nil {
			t.Errorf("%s: was taken", name)
		}
	}
}

// Rows of the usual pair are judged as those of wrk's keep-alive, and their names tell which is which.
func TestFortioRows(t *testing.T) {
	for _, key := range []string{"fortio1", "fortio8"} {
		i := slices.IndexFunc(workloads, func(w workload) bool { return w.Key == key })
		if i < 0 {
			t.Fatalf("no workload %s", key)
		}
		w := workloads[i]
		r := round{
			Before: sample{Rate: 100, P50: 100, P99: 200}, After: sample{Rate: 100, P50: 100, P99: 200},
			Others: map[string]sample{l7: {Rate: 92, P50: 110, P99: 210}, haproxy: {Rate: 40, P50: 250, P99: 500}},
		}
		rows := tableOf([]outcome{outcomeOf(w, []round{r})}, nil, adds{})
		if len(rows) != 3 {
			t.Fatalf("%s: rows %+v", key, rows)
		}
		for j, want := range []struct {
			what           string
			reached, there verdict
		}{
			{"L7: " + w.What + ", requests/s", reached, notReached},
			{"L7: " + w.What + ", p50", notReached, ""},
			{"L7: " + w.What + ", requests/s to HAProxy x2's", notReached, ""},
		} {
			if got := rows[j]; got.What != want.what || got.Reached != want.reached || got.There != want.there {
				t.Errorf("%s: %+v, want %+v", key, got, want)
			}
		}
		v := &variant{}
		args := w.client(&bed{fortio: "fortio"}, v, settings{Duration: 1500 * time.Millisecond})
		if !slices.Contains(args, "1.5s") || !slices.Contains(args, key[len("fortio"):]) {
			t.Errorf("%s: %v", key, args)
		}
	}
}
