"""The program launch/tpu.py, for any Python >= 3.9 with its standard library alone.

machines.py   the types of machines, as a table
states.py     what gcloud says of resources, VMs and faults, as tables
shell.py      the one function that runs commands
cloud.py      the gcloud commands that are used
job.py        the job file and the other objects in the bucket
code.py       the checkout as one archive
checks.py     what is refused before anything is paid for
ask.py        how machines are asked for
table.py      what is seen, and what is done about it, as a table
watch.py      looks, decides and acts until a job is done
hosts.py      what is done on the VMs over ssh
show.py       status, lists and logs
make.py       jobs and machines that are new
flags.py      the flags of launch/tpu.py
cli.py        its commands
on_vm.py      what runs on the VMs
"""
