"""SLURM's accounts in a database: MariaDB and slurmdbd, both on the controller, where they end with it."""

from __future__ import annotations

from tests.hosts.machines import USERS

PROGRAMS = ("slurmdbd", "sacctmgr", "mariadbd", "mariadb-install-db", "mariadb-admin")
_SOCKET = "--socket=/run/mysqld/mysqld.sock"
_FOLDER = "--datadir=/run/mariadb"  # in memory
DATABASE = ["mariadbd", "--no-defaults", "--user=root", _FOLDER, _SOCKET, "--skip-networking"]
DATABASE += ["--innodb-buffer-pool-size=64M", "--innodb-log-file-size=16M"]
INSTALL = (
    f"mkdir -p /run/mariadb /run/mysqld && mariadb-install-db --no-defaults --user=root {_FOLDER} "
    "--auth-root-authentication-method=normal --skip-test-db"
)
DATABASE_ANSWERS = f"mariadb-admin --no-defaults {_SOCKET} ping"
# Jobs of root are charged to the account root, which SLURM makes itself, and have no limits.
ACCOUNTS = (
    "sacctmgr --immediate add cluster hosts && sacctmgr --immediate add qos single set MaxJobsPerUser=1 && "
    "sacctmgr --immediate add account lab && "
    f"sacctmgr --immediate add user {','.join(USERS)} account=lab qos=normal,single"
)
