"""The files of SLURM's configuration, on a cluster of machines of their own."""

SLURM = """\
ClusterName=hosts
SlurmctldHost={controller}({address})
SlurmUser=root
AuthType=auth/munge
AuthInfo=cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile=/run/slurmctld.pid
SlurmdPidFile=/run/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
MailProg=/bin/true
ProctrackType=proctrack/cgroup
TaskPlugin=task/affinity,task/cgroup
TaskProlog={etc}/task_prolog
MpiDefault=none
JobAcctGatherType=jobacct_gather/cgroup
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost={controller}
AccountingStorageEnforce=associations,limits,qos
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
KillWait=5
InactiveLimit=0
MinJobAge=3600
SlurmdTimeout={slurmd_timeout_s}
ReturnToService=2
SchedulerParameters=batch_sched_delay=1,sched_interval=2,bf_interval=1
{nodes}
PartitionName=low Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=10
PartitionName=high Nodes=n1,n2 MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""
NODE = (
    "NodeName={name} NodeAddr={address} CPUs=2 Boards=1 Sockets=1 CoresPerSocket=2 ThreadsPerCore=1 RealMemory=8000 "
    "State=UNKNOWN"
)
CGROUP = """\
CgroupPlugin=cgroup/v1
CgroupMountpoint=/sys/fs/cgroup
CgroupAutomount=no
ConstrainCores=yes
ConstrainRAMSpace=yes
"""
# What happens on one machine before its tasks, and the variables that it gives them by "export". srun would pass the
# wrong clock of a batch script on to all.
TASK_PROLOG = """\
#!/bin/sh
if [ -e /run/before_tasks ]; then . /run/before_tasks; else echo unset CLOCK_OFF_S; fi
"""
SLURMDBD = """\
AuthType=auth/munge
DbdHost={controller}
SlurmUser=root
PidFile=/run/slurmdbd.pid
LogFile={folder}/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
"""
