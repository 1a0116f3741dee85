/** Memory and events that processes share by passing each other descriptors. */
export interface HostSharing {
  /**
   * A stretch of a file, to read and to write; the descriptor stays the caller's. The file is kept from shrinking where
   * that is possible (memfd_create(2)): who touches what is gone dies. Errors: invalid, when the file is shorter.
   */
  map(fd: number, offset: number, lengthBytes: number): SharedMemory;
  /** A new file in memory, of zeroes, which nobody can make shorter or longer; answers its descriptor. */
  create(name: string, lengthBytes: number): number;
  /** Takes over an eventfd(2) that others count up: tells when they have. Errors: invalid, when it is none. */
  watch(fd: number, onEvent: () => void): HostWatch;
  /** Takes over an eventfd(2) that others wait for; it keeps nobody waiting from here on. Errors: invalid, when it is none. */
  openEvent(fd: number): HostEvent;
  close(fd: number): void;
}

/** Others may change it at any time. Nothing that was made of it may be used after unmap(). */
export interface SharedMemory {
  readonly lengthBytes: number;
  /** Made anew with each call; at most MAX_VIEW_BYTES. */
  view(offset: number, lengthBytes: number): Uint8Array;
  unmap(): void;
}

export interface HostWatch {
  /** Its own, for another process. */
  readonly fd: number;
  /** What is counted from here on stays for whoever watches next, here or in another process. */
  pause(): void;
  resume(): void;
  close(): void;
}

export interface HostEvent {
  /** Its own, for another process. */
  readonly fd: number;
  signal(): void;
  close(): void;
}
