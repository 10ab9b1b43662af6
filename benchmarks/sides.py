"""The sides of a comparison: a process for each, and rounds that alternate between them."""

import multiprocessing


class Sides:
    """Processes that first tell of their start, and then answer one message after the other.

    Each runs `serve(pipe, *arguments)`, which sends one thing once it is ready, one for every
    message that comes, and ends at None; it may send one thing more then.

    Attributes:
      started: by name, what each sent first.
    """

    def __init__(self, serve, arguments):
        """Start the sides one after the other: they would slow each other's start.

        Args:
          serve: a function at the top level of its module.
          arguments: by name, what each side is given.
        """
        spawn = multiprocessing.get_context("spawn")
        self._children, self.started = {}, {}
        for name, of_side in arguments.items():
            pipe, theirs = spawn.Pipe()
            process = spawn.Process(target=serve, args=(theirs, *of_side), daemon=True)
            process.start()
            theirs.close()
            self._children[name] = (process, pipe)
            self.started[name] = pipe.recv()

    def rounds(self, count, message=True):
        """Send each side a message in turn, so many times; return the answers by name."""
        answers = {name: [] for name in self._children}
        for _ in range(count):
            for name, (_, pipe) in self._children.items():
                pipe.send(message)
                answers[name].append(pipe.recv())
        return answers

    def end(self):
        """End all; return by name what each said last, None where it said nothing."""
        last = {}
        for name, (process, pipe) in self._children.items():
            pipe.send(None)
            try:
                last[name] = pipe.recv()
            except EOFError:
                last[name] = None
            process.join()
        return last
