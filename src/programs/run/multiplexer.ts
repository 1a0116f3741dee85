import { MUX_HELP } from '../../attach/mux-device.js';
import type { HostSocket } from '../../host/host.js';

const ESCAPE = '\x01';

export interface Multiplexed {
  /** The first time that somebody turns to the monitor. What it answers takes what is typed from then on. */
  open: (write: (text: string) => void) => { push: (chunk: Buffer) => void; showAgain: () => void };
  quit: () => void;
}

/**
 * A guest's serial console and the human monitor on one terminal, as QEMU's -nographic has them. No guest runs here, so
 * the console, which is what one sees first, is silent. Ctrl-A and a letter are commands.
 */
export function multiplex(connection: HostSocket, { open, quit }: Multiplexed): void {
  let monitor: ReturnType<Multiplexed['open']> | undefined;
  let isAtMonitor = false;
  let isEscaped = false;
  const writeRaw = (text: string): void => void connection.write(Buffer.from(text));
  const write = (text: string): void => writeRaw(text.replaceAll('\n', '\r\n'));
  const turn = (): void => {
    isAtMonitor = !isAtMonitor;
    if (!isAtMonitor) write('\n');
    else if (monitor) monitor.showAgain();
    else monitor = open(write);
  };
  const command = (letter: string): void => {
    if (letter === 'c') turn();
    else if (letter === 'h') writeRaw(MUX_HELP);
    else if (letter === 'x') {
      writeRaw('QEMU: Terminated\n\r');
      quit();
    } else if (letter === ESCAPE && isAtMonitor) monitor?.push(Buffer.from(ESCAPE));
  };
  connection.start({
    onData: (chunk) => {
      // Keys that are commands are single bytes, whatever else comes with them.
      for (const byte of chunk) {
        const key = String.fromCharCode(byte);
        if (isEscaped) {
          isEscaped = false;
          command(key);
        } else if (key === ESCAPE) isEscaped = true;
        else if (isAtMonitor) monitor?.push(Buffer.from([byte]));
      }
    },
    onClose: () => undefined,
  });
}
