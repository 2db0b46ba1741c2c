"""What happens to a certificate after the gate: it is signed, verified before a deployment, and compared with another one."""
