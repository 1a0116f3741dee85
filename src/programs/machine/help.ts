export const MACHINE_USAGE = `usage: livedisk machine [--machine=PROGRAM] [OPTION]...
       livedisk run --machine[=PROGRAM] [OPTION]...

Runs a machine whose disks are served here: an installed qemu-system-x86_64 (or PROGRAM) with QEMU's command line. Disks
(-drive, -blockdev, -device of a disk, -hda and so on), their objects and all monitors are livedisk's, as in 'livedisk run';
all else is the machine's. virtio-blk comes to its disk by vhost-user in the machine's memory, which is shared for that; other
models, and a machine whose own -object memory-backend-... is not share=on, over NBD.

  --machine=PROGRAM     what runs the guest; launchers of livedisk's own are refused
  -qmp unix:PATH,server=on,wait=off
                        one monitor for both: commands of disks and jobs are answered here, all others by the machine,
                        and events of both are told; -monitor, -mon and the human monitor likewise
  -S, -name, -m, -device, ...
                        as in QEMU. Without -accel and its like KVM is used where it can be, else TCG. With -nographic or
                        -serial mon:stdio the terminal is the guest's console: Ctrl-A x ends the machine

Both have one life: when the guest shuts down, or 'quit' or a signal comes, the disks are flushed and both end. Refused by
name: savevm and loadvm (the memory is the other program's), change of media.
`;
