"""What an operator sees, computed once: the page, the admin API and the CLI show what this package returns.

    registry and agents → `snapshot.FleetSnapshot` → views of functions and hosts, plans → `routes`, `status`, `cli`

The rules are those of the process that acts: `platform/scheduling` decides what is reaped, evicted and placed, and this
package calls the same functions.
"""
