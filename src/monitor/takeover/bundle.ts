/** Descriptors on their way with a message, which names them by their places. */
export class Bundle {
  readonly fds: number[] = [];
  /** Made for the message. */
  readonly #own: number[] = [];

  /** It is of no use once the message is sent. */
  own(fd: number): void {
    this.#own.push(fd);
  }

  /** The message was sent, or is not going to be. */
  end(close: (fd: number) => void): void {
    for (const fd of this.#own.splice(0)) close(fd);
  }

  /** Its place. */
  add(fd: number): number {
    return this.fds.push(fd) - 1;
  }

  addAll(fds: readonly number[]): number[] {
    return fds.map((fd) => this.add(fd));
  }
}
