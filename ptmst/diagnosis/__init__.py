"""What the experts of a store are like, and what they teach a set: the diagnosis behind the choice of phases."""
