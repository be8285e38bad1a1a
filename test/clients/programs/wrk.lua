-- SPDX-License-Identifier: Apache-2.0
-- Each request has another path than the one before. Behind wrk's own report it says what it counted, in one line. A body
-- that is not the file's size, and a server that is not known, are counted too.
local requests, n = {}, 0
local threads = {}

function setup(thread)
   table.insert(threads, thread)
end

function init(args)
   size, strange, servers = tonumber(args[1]), 0, ""
   seen = {}
   for i = 2, #args do
      requests[i - 1] = wrk.format("GET", args[i])
   end
end

function request()
   n = n % #requests + 1
   return requests[n]
end

function response(status, headers, body)
   local by = headers["X-Server"] or headers["x-server"] or "?"
   if status ~= 200 or #body ~= size then
      strange = strange + 1
   end
   if not seen[by] then
      seen[by] = true
      servers = servers .. by .. " "
   end
end

function done(summary, latency)
   local e, odd, by = summary.errors, 0, ""
   for _, thread in ipairs(threads) do
      odd = odd + thread:get("strange")
      by = by .. thread:get("servers")
   end
   io.write(string.format('\n{"count":%d,"errors":%d,"status":%d,"strange":%d,"servers":"%s"}\n',
      summary.requests, e.connect + e.read + e.write + e.timeout, e.status, odd, by))
end
