"""What a host believes of names and networks: its own name, the other's, a network that is dead."""

from __future__ import annotations

from contextlib import ExitStack

from tests.hosts.cluster import HostCluster
from tests.hosts.test_hosts import Undisturbed, ends_with
from tests.submitted import Run

NODES = ("n1", "n2")


def test_the_own_name_may_be_a_loopback_address(cluster: HostCluster, run: Run, undisturbed: Undisturbed) -> None:
    with ExitStack() as stack:
        for name in NODES:  # as Debian installs itself
            hosts = cluster.network.hosts().replace(f"{cluster.machines[name].address} {name}", f"127.0.1.1 {name}")
            stack.enter_context(cluster.machines[name].resolving(hosts))
        run.submit()
        ends_with(run, undisturbed(2), restarts=0)


def test_a_host_need_not_know_the_name_of_any_other(cluster: HostCluster, run: Run, undisturbed: Undisturbed) -> None:
    with ExitStack() as stack:
        for name in NODES:
            machine = cluster.machines[name]
            hosts = f"127.0.0.1 localhost\n{machine.address} {name}\n{cluster.machines['n0'].address} n0\n"
            stack.enter_context(machine.resolving(hosts))
        run.submit()
        ends_with(run, undisturbed(2), restarts=0)


def test_a_dead_network_is_not_used_though_the_names_lead_there(
    cluster: HostCluster, run: Run, undisturbed: Undisturbed
) -> None:
    with ExitStack() as stack:
        stack.enter_context(cluster.network.second_network_dead())
        for name in NODES:
            hosts = cluster.network.hosts()
            for each in NODES:
                machine = cluster.machines[each]
                hosts = hosts.replace(machine.address, machine.addresses["eth1"])
            stack.enter_context(cluster.machines[name].resolving(hosts))
        run.submit()
        ends_with(run, undisturbed(2), restarts=0)
