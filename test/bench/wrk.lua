-- SPDX-License-Identifier: Apache-2.0
-- What wrk counted, in one line of JSON behind its own report. Times are in microseconds.
function done(summary, latency)
   local e = summary.errors
   io.write(string.format('\n{"count":%d,"seconds":%.6f,"p50_us":%.0f,"p99_us":%.0f,' ..
      '"connect":%d,"read":%d,"write":%d,"status":%d,"timeout":%d}\n',
      summary.requests, summary.duration / 1e6, latency:percentile(50), latency:percentile(99),
      e.connect, e.read, e.write, e.status, e.timeout))
end
