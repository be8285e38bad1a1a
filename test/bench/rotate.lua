-- SPDX-License-Identifier: Apache-2.0
-- Each request has another path than the one before: of three, in turn. Made once: writing them is not to be measured.
local requests = {}
local n = 0

function init(args)
   for i, path in ipairs({"/a", "/b", "/c"}) do
      requests[i] = wrk.format("GET", path)
   end
end

function request()
   n = n % 3 + 1
   return requests[n]
end
