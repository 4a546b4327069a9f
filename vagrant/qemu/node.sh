ok "vetch check" vetch check
