"""What a request is changed into on its way: the mismatch actions of header conditions (LOG, ADD, DELETE, REPLACE).

A condition with such an action does not decide whether its rule matches. The actions of every rule that matches count,
and each sees the headers as they came to its end. Which rules match only RBAC can say, and it names one policy: so a
filter behind the rules has a policy for each combination of changing rules, the largest first, and the one that it
names is exactly the combination that matches. What then differs a script finds out, which is always the same and gets
its data from the route. The route brings the script, too: in every listener it would cost Envoy 300 KiB each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations

from envoy.config.rbac.v3 import rbac_pb2
from envoy.extensions.filters.http.lua.v3 import lua_pb2

from spliceway.policy.table import HttpRule, Mismatch
from spliceway.xds.resources.names import HEADERS_METADATA, POLICY, PREFIXES, RBAC_METADATA, End, combination_name
from spliceway.xds.resources.rbac import pass_all
from spliceway.xds.resources.rules import Group, group_of, matching_policy

#: So many different conditions of changing rules have 63 combinations.
MAX_GROUPS = 6

#: Values come in hexadecimal, since strings of a route are UTF-8. A failure must not let a request pass unchanged.
SCRIPT = """
local function bytes(hex)
  return (hex:gsub("%x%x", function(pair) return string.char(tonumber(pair, 16)) end))
end

local function wrong(headers, item)
  local count = headers:getNumValues(item.name)
  if count == 0 then return item.action ~= "DELETE" end
  if count > 1 then return true end
  return item.value ~= nil and headers:getAtIndex(item.name, 0) ~= bytes(item.value)
end

local function change(handle)
  local context = handle:filterContext()
  local metadata = handle:streamInfo():dynamicMetadata()
  local results = metadata:get("RBAC_METADATA") or {}
  local ids = (results[context:get("result")] or ""):match("/(.*)")
  if not ids then return end
  local matching = {}
  for id in ids:gmatch("%d+") do matching[id] = true end
  local headers = handle:headers()
  local found, seen, names = {}, {}, {}
  for _, item in ipairs(context:get("changes")) do
    if matching[item.group] and wrong(headers, item) then
      local gives = item.action == "ADD" or item.action == "REPLACE"
      local same = item.action .. " " .. item.name .. " " .. (gives and item.value or "")
      if not seen[same] then
        seen[same] = true
        table.insert(found, item)
      end
      if not seen[item.name] then
        seen[item.name] = true
        table.insert(names, item.name)
      end
    end
  end
  for _, item in ipairs(found) do
    if item.action == "DELETE" or item.action == "REPLACE" then headers:remove(item.name) end
    if item.action == "ADD" or item.action == "REPLACE" then headers:add(item.name, bytes(item.value or "")) end
  end
  if #names > 0 then metadata:set("HEADERS_METADATA", context:get("end"), table.concat(names, ",")) end
end

function envoy_on_request(handle)
  local done, problem = pcall(change, handle)
  if not done then
    handle:logErr("headers can't be changed: " .. tostring(problem))
    handle:respond({[":status"] = "500"}, "")
  end
end
""".replace("RBAC_METADATA", RBAC_METADATA).replace("HEADERS_METADATA", HEADERS_METADATA)


def changing(rules: Sequence[HttpRule]) -> list[HttpRule]:
    """The rules that may change or note something."""
    return [rule for rule in rules if any(match.mismatch is not Mismatch.DENY for match in rule.headers)]


def too_many(rules: Sequence[HttpRule]) -> str | None:
    """Why these rules' changes can't be told apart, None when they can."""
    groups = len(_groups(rules))
    if groups <= MAX_GROUPS:
        return None
    return f"{groups} different rules with mismatch actions, and no more than {MAX_GROUPS} can be served"


def combined_tests(rules: Sequence[HttpRule]) -> int:
    """How many tests stand in `combination_rules`: each condition is in half of the combinations."""
    groups = _groups(rules)
    return sum(len(tests) for group in groups for tests in group.tests) << max(len(groups) - 1, 0)


def combination_rules(rules: Sequence[HttpRule]) -> rbac_pb2.RBAC:
    """The allow list that names which of the changing rules match; everything passes."""
    result = pass_all()
    groups = list(_groups(rules).items())
    index = 0
    for size in range(len(groups), 0, -1):
        for chosen in combinations(groups, size):
            name = combination_name(index, [number for _, number in chosen])
            result.policies[name].CopyFrom(matching_policy([group for group, _ in chosen]))
            index += 1
    return result


def no_script() -> lua_pb2.Lua:
    """The script's filter in a listener: nothing to run, and no other route after a change (there is only one)."""
    return lua_pb2.Lua(clear_route_cache={"value": False})


def script_of(rules: Sequence[HttpRule], end: End) -> lua_pb2.LuaPerRoute:
    """The script, and what it has to know of these rules."""
    groups = _groups(rules)
    items = [{"group": str(groups[group_of(rule)])} | item for rule, item in _items(rules)]
    made = lua_pb2.LuaPerRoute(source_code={"inline_string": SCRIPT})
    made.filter_context.update({"end": end.policy, "result": PREFIXES[end.matches] + POLICY, "changes": items})
    return made


def noted_changes(rules: Sequence[HttpRule]) -> list[dict[str, str]]:
    """The mismatch actions of rules that change nothing, for a reader of the rules."""
    return [item for _, item in _items(rules)]


def _items(rules: Sequence[HttpRule]) -> Iterator[tuple[HttpRule, dict[str, str]]]:
    """Each condition with an action. `rule` and `at`: which of the rules, and of its conditions, for readers."""
    for index, rule in enumerate(rules):
        for at, match in enumerate(rule.headers):
            if match.mismatch is not Mismatch.DENY:
                item = {"rule": str(index), "at": str(at), "name": match.name, "action": match.mismatch.value}
                yield rule, item | ({} if match.value is None else {"value": match.value.encode("latin-1").hex()})


def _groups(rules: Sequence[HttpRule]) -> dict[Group, int]:
    """A number for each condition under which something is changed, in the order of the rules."""
    result: dict[Group, int] = {}
    for rule in changing(rules):
        result.setdefault(group_of(rule), len(result))
    return result
