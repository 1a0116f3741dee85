const COMMON = `  -blockdev driver=DRIVER,node-name=NAME,...
                        open an image; options are those of QMP's blockdev-add, dotted, or one JSON object
  -nbd-server addr.type=unix,addr.path=PATH | addr.type=inet,addr.host=HOST,addr.port=PORT
                        start the NBD server (max-connections=N limits its clients)
  -export type=nbd,id=ID,node-name=NAME[,name=EXPORT][,writable=on]
                        serve a node over it
  -object TYPE,id=ID[,PROPERTY=VALUE]...
                        make an object: a secret, credentials, limits (help lists the types)
  -chardev socket,id=ID,path=PATH,server=on,wait=off
                        a socket for a monitor (host= and port=, or fd=, instead of path=)
  -pidfile FILE         write the process's number there
  -help                 this text
  -version              the version
`;

export const HELP = {
  machine: `usage: livedisk run [OPTION]...

Serves the disks of a machine, driven as QEMU is: the options are QEMU's (one dash or two).

  -add-fd fd=N,set=M    /dev/fdset/M stands for the file that descriptor N is open on
  -device virtio-blk,drive=NODE,id=ID[,x-endpoint=unix:PATH]
                        the guest's disk; an NBD client of its endpoint is the guest
                        (share-rw=, write-cache=, rerror=, werror= as in QEMU)
  -S                    the guest waits for 'cont'
  -incoming tcp:HOST:PORT | unix:PATH | defer
                        images belong to the other end until they are exported here
  -qmp unix:PATH,server=on,wait=off
                        QMP on a socket (-qmp-pretty indents; tcp:HOST:PORT; several may be given)
  -monitor stdio | unix:PATH,server=on,wait=off | none
                        the human monitor
  -mon chardev=ID,mode=control|readline
                        a monitor on a -chardev
${COMMON}
-M, -machine, -m, -nodefaults, -no-user-config and -display none are taken and mean nothing here.
`,
  'storage-daemon': `usage: livedisk storage-daemon [OPTION]...

Serves disks as qemu-storage-daemon does, with its options, taken in their order.

  -monitor chardev=ID[,mode=control][,pretty=on]
                        QMP on a -chardev
${COMMON}`,
} as const;
